/* Stands in for libhidapi-hidraw.so.0 under the real easyhid and pyspacemouse.

   Devices are the UNIX sockets in the folder $FAKE_HID. Beside each, NAME.txt holds vendor, product, usage page and usage
   as four hexadecimal numbers; a report arrives through the socket as its length and 15 bytes. While the folder holds a file "hold",
   nothing is read, as in a process that gets no time. */
#include <dirent.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <wchar.h>

struct hid_device_info {
    char *path;
    unsigned short vendor_id, product_id;
    wchar_t *serial_number;
    unsigned short release_number;
    wchar_t *manufacturer_string, *product_string;
    unsigned short usage_page, usage;
    int interface_number;
    struct hid_device_info *next;
};
struct hid_device { int fd, timeout_ms; };

static int in_folder(char *path, size_t size, const char *name) {
    const char *folder = getenv("FAKE_HID");
    return folder && (size_t)snprintf(path, size, "%s/%s", folder, name) < size;
}

struct hid_device_info *hid_enumerate(unsigned short vendor, unsigned short product) {
    struct hid_device_info *first = NULL;
    const char *folder = getenv("FAKE_HID");
    DIR *listing = folder ? opendir(folder) : NULL;
    for (struct dirent *entry; listing && (entry = readdir(listing));) {
        char path[512], *ending = strstr(entry->d_name, ".txt");
        unsigned ids[4];
        if (!ending || !in_folder(path, sizeof path, entry->d_name)) continue;
        FILE *text = fopen(path, "r");
        int found = text ? fscanf(text, "%x %x %x %x", &ids[0], &ids[1], &ids[2], &ids[3]) : 0;
        if (text) fclose(text);
        if (found != 4 || (vendor && vendor != ids[0]) || (product && product != ids[1])) continue;
        path[strlen(path) - strlen(".txt")] = 0;
        struct hid_device_info *info = calloc(1, sizeof *info);
        *info = (struct hid_device_info){
            .path = strdup(path), .vendor_id = ids[0], .product_id = ids[1], .usage_page = ids[2], .usage = ids[3],
            .serial_number = wcsdup(L""), .manufacturer_string = wcsdup(L"3Dconnexion"),
            .product_string = wcsdup(L"SpaceMouse"), .next = first};
        first = info;
    }
    if (listing) closedir(listing);
    return first;
}

void hid_free_enumeration(struct hid_device_info *info) {
    while (info) {
        struct hid_device_info *next = info->next;
        free(info->path), free(info->serial_number), free(info->manufacturer_string), free(info->product_string);
        free(info);
        info = next;
    }
}

struct hid_device *hid_open_path(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (access(path, R_OK | W_OK) || connect(fd, (struct sockaddr *)&address, sizeof address)) {
        close(fd);
        return NULL;
    }
    struct hid_device *device = calloc(1, sizeof *device);
    *device = (struct hid_device){.fd = fd, .timeout_ms = -1};
    return device;
}

int hid_read_timeout(struct hid_device *device, unsigned char *data, size_t length, int timeout_ms) {
    char hold[512];
    if (in_folder(hold, sizeof hold, "hold") && !access(hold, F_OK)) return usleep(1000), 0;
    struct pollfd waiting = {.fd = device->fd, .events = POLLIN};
    if (poll(&waiting, 1, timeout_ms) == 0) return 0;
    unsigned char frame[16];
    if (recv(device->fd, frame, sizeof frame, MSG_WAITALL) != sizeof frame) return -1; /* unplugged */
    if (length > frame[0]) length = frame[0];
    memcpy(data, frame + 1, length);
    return (int)length;
}

int hid_read(struct hid_device *device, unsigned char *data, size_t length) {
    return hid_read_timeout(device, data, length, device->timeout_ms);
}

int hid_set_nonblocking(struct hid_device *device, int is_nonblocking) {
    device->timeout_ms = is_nonblocking ? 0 : -1;
    return 0;
}

void hid_close(struct hid_device *device) {
    close(device->fd);
    free(device);
}
