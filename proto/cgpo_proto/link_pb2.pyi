from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MarkKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MARK_KIND_UNSPECIFIED: _ClassVar[MarkKind]
    MARK_KIND_SUCCESS: _ClassVar[MarkKind]
    MARK_KIND_FAILURE: _ClassVar[MarkKind]
    MARK_KIND_DISCARD: _ClassVar[MarkKind]
    MARK_KIND_BOOKMARK: _ClassVar[MarkKind]
    MARK_KIND_ABORTED: _ClassVar[MarkKind]

class ActionSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_SOURCE_UNSPECIFIED: _ClassVar[ActionSource]
    ACTION_SOURCE_POLICY: _ClassVar[ActionSource]
    ACTION_SOURCE_HUMAN_DEMONSTRATION: _ClassVar[ActionSource]
    ACTION_SOURCE_HUMAN_INTERVENTION: _ClassVar[ActionSource]

class ImageCodec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_CODEC_UNSPECIFIED: _ClassVar[ImageCodec]
    IMAGE_CODEC_RAW: _ClassVar[ImageCodec]
    IMAGE_CODEC_JPEG: _ClassVar[ImageCodec]
    IMAGE_CODEC_PNG: _ClassVar[ImageCodec]

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_UINT8: _ClassVar[DType]

class TrainerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAINER_STATE_UNSPECIFIED: _ClassVar[TrainerState]
    TRAINER_STATE_TRAINING: _ClassVar[TrainerState]
    TRAINER_STATE_WAITING: _ClassVar[TrainerState]
    TRAINER_STATE_DOWN: _ClassVar[TrainerState]
MARK_KIND_UNSPECIFIED: MarkKind
MARK_KIND_SUCCESS: MarkKind
MARK_KIND_FAILURE: MarkKind
MARK_KIND_DISCARD: MarkKind
MARK_KIND_BOOKMARK: MarkKind
MARK_KIND_ABORTED: MarkKind
ACTION_SOURCE_UNSPECIFIED: ActionSource
ACTION_SOURCE_POLICY: ActionSource
ACTION_SOURCE_HUMAN_DEMONSTRATION: ActionSource
ACTION_SOURCE_HUMAN_INTERVENTION: ActionSource
IMAGE_CODEC_UNSPECIFIED: ImageCodec
IMAGE_CODEC_RAW: ImageCodec
IMAGE_CODEC_JPEG: ImageCodec
IMAGE_CODEC_PNG: ImageCodec
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT32: DType
DTYPE_UINT8: DType
TRAINER_STATE_UNSPECIFIED: TrainerState
TRAINER_STATE_TRAINING: TrainerState
TRAINER_STATE_WAITING: TrainerState
TRAINER_STATE_DOWN: TrainerState

class PingRequest(_message.Message):
    __slots__ = ("payload", "reply_bytes")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    reply_bytes: int
    def __init__(self, payload: _Optional[bytes] = ..., reply_bytes: _Optional[int] = ...) -> None: ...

class PingReply(_message.Message):
    __slots__ = ("wall_time_s", "protocol_version", "commit", "payload")
    WALL_TIME_S_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    wall_time_s: float
    protocol_version: int
    commit: str
    payload: bytes
    def __init__(self, wall_time_s: _Optional[float] = ..., protocol_version: _Optional[int] = ..., commit: _Optional[str] = ..., payload: _Optional[bytes] = ...) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ("protocol_version", "actor_id", "incarnation", "specs_json", "policy_json", "spooled_incarnations", "host", "pid", "take_over", "first_sequences")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SPECS_JSON_FIELD_NUMBER: _ClassVar[int]
    POLICY_JSON_FIELD_NUMBER: _ClassVar[int]
    SPOOLED_INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    TAKE_OVER_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    actor_id: str
    incarnation: str
    specs_json: str
    policy_json: str
    spooled_incarnations: _containers.RepeatedScalarFieldContainer[str]
    host: str
    pid: int
    take_over: bool
    first_sequences: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, protocol_version: _Optional[int] = ..., actor_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., specs_json: _Optional[str] = ..., policy_json: _Optional[str] = ..., spooled_incarnations: _Optional[_Iterable[str]] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., take_over: _Optional[bool] = ..., first_sequences: _Optional[_Iterable[int]] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("protocol_version", "weights_version", "resume", "session")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    weights_version: int
    resume: _containers.RepeatedCompositeFieldContainer[ResumePosition]
    session: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., weights_version: _Optional[int] = ..., resume: _Optional[_Iterable[_Union[ResumePosition, _Mapping]]] = ..., session: _Optional[bytes] = ...) -> None: ...

class ResumePosition(_message.Message):
    __slots__ = ("incarnation", "next_sequence", "crc32")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    next_sequence: int
    crc32: int
    def __init__(self, incarnation: _Optional[str] = ..., next_sequence: _Optional[int] = ..., crc32: _Optional[int] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("actor_id", "incarnation", "sequence", "body", "crc32")
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    incarnation: str
    sequence: int
    body: bytes
    crc32: int
    def __init__(self, actor_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., sequence: _Optional[int] = ..., body: _Optional[bytes] = ..., crc32: _Optional[int] = ...) -> None: ...

class Body(_message.Message):
    __slots__ = ("transition", "mark")
    TRANSITION_FIELD_NUMBER: _ClassVar[int]
    MARK_FIELD_NUMBER: _ClassVar[int]
    transition: Transition
    mark: EpisodeMark
    def __init__(self, transition: _Optional[_Union[Transition, _Mapping]] = ..., mark: _Optional[_Union[EpisodeMark, _Mapping]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("incarnation", "next_sequence", "refused", "refusal", "crc32")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    next_sequence: int
    refused: int
    refusal: str
    crc32: int
    def __init__(self, incarnation: _Optional[str] = ..., next_sequence: _Optional[int] = ..., refused: _Optional[int] = ..., refusal: _Optional[str] = ..., crc32: _Optional[int] = ...) -> None: ...

class Transition(_message.Message):
    __slots__ = ("episode", "step", "observation", "policy_action", "executed_action", "source", "reward", "terminated", "truncated", "weights_version", "weights_age_s", "wall_time_s", "monotonic_time_s", "reward_source", "final_observation", "gripper_toggled", "weights_lag_steps")
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    POLICY_ACTION_FIELD_NUMBER: _ClassVar[int]
    EXECUTED_ACTION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    TERMINATED_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_AGE_S_FIELD_NUMBER: _ClassVar[int]
    WALL_TIME_S_FIELD_NUMBER: _ClassVar[int]
    MONOTONIC_TIME_S_FIELD_NUMBER: _ClassVar[int]
    REWARD_SOURCE_FIELD_NUMBER: _ClassVar[int]
    FINAL_OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    GRIPPER_TOGGLED_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_LAG_STEPS_FIELD_NUMBER: _ClassVar[int]
    episode: int
    step: int
    observation: Observation
    policy_action: _containers.RepeatedScalarFieldContainer[float]
    executed_action: _containers.RepeatedScalarFieldContainer[float]
    source: ActionSource
    reward: float
    terminated: bool
    truncated: bool
    weights_version: int
    weights_age_s: float
    wall_time_s: float
    monotonic_time_s: float
    reward_source: str
    final_observation: Observation
    gripper_toggled: bool
    weights_lag_steps: int
    def __init__(self, episode: _Optional[int] = ..., step: _Optional[int] = ..., observation: _Optional[_Union[Observation, _Mapping]] = ..., policy_action: _Optional[_Iterable[float]] = ..., executed_action: _Optional[_Iterable[float]] = ..., source: _Optional[_Union[ActionSource, str]] = ..., reward: _Optional[float] = ..., terminated: _Optional[bool] = ..., truncated: _Optional[bool] = ..., weights_version: _Optional[int] = ..., weights_age_s: _Optional[float] = ..., wall_time_s: _Optional[float] = ..., monotonic_time_s: _Optional[float] = ..., reward_source: _Optional[str] = ..., final_observation: _Optional[_Union[Observation, _Mapping]] = ..., gripper_toggled: _Optional[bool] = ..., weights_lag_steps: _Optional[int] = ...) -> None: ...

class EpisodeMark(_message.Message):
    __slots__ = ("episode", "step", "kind", "wall_time_s", "note")
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    WALL_TIME_S_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    episode: int
    step: int
    kind: MarkKind
    wall_time_s: float
    note: str
    def __init__(self, episode: _Optional[int] = ..., step: _Optional[int] = ..., kind: _Optional[_Union[MarkKind, str]] = ..., wall_time_s: _Optional[float] = ..., note: _Optional[str] = ...) -> None: ...

class Observation(_message.Message):
    __slots__ = ("fields", "images")
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    fields: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    images: _containers.RepeatedCompositeFieldContainer[NamedImage]
    def __init__(self, fields: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., images: _Optional[_Iterable[_Union[NamedImage, _Mapping]]] = ...) -> None: ...

class NamedImage(_message.Message):
    __slots__ = ("name", "codec", "height", "width", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    codec: ImageCodec
    height: int
    width: int
    data: bytes
    def __init__(self, name: _Optional[str] = ..., codec: _Optional[_Union[ImageCodec, str]] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class NamedTensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class WatchWeightsRequest(_message.Message):
    __slots__ = ("actor_id", "have_sha256")
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    HAVE_SHA256_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    have_sha256: str
    def __init__(self, actor_id: _Optional[str] = ..., have_sha256: _Optional[str] = ...) -> None: ...

class WeightsChunk(_message.Message):
    __slots__ = ("version", "manifest", "offset", "data", "status")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    version: int
    manifest: WeightsManifest
    offset: int
    data: bytes
    status: LearnerStatus
    def __init__(self, version: _Optional[int] = ..., manifest: _Optional[_Union[WeightsManifest, _Mapping]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., status: _Optional[_Union[LearnerStatus, _Mapping]] = ...) -> None: ...

class LearnerStatus(_message.Message):
    __slots__ = ("learner_step", "state", "alarm")
    LEARNER_STEP_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    learner_step: int
    state: TrainerState
    alarm: str
    def __init__(self, learner_step: _Optional[int] = ..., state: _Optional[_Union[TrainerState, str]] = ..., alarm: _Optional[str] = ...) -> None: ...

class WeightsManifest(_message.Message):
    __slots__ = ("num_bytes", "sha256", "learner_step", "published_wall_s", "tensors")
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    LEARNER_STEP_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_WALL_S_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    sha256: str
    learner_step: int
    published_wall_s: float
    tensors: _containers.RepeatedCompositeFieldContainer[TensorInfo]
    def __init__(self, num_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., learner_step: _Optional[int] = ..., published_wall_s: _Optional[float] = ..., tensors: _Optional[_Iterable[_Union[TensorInfo, _Mapping]]] = ...) -> None: ...

class TensorInfo(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...
