"""Generated messages of link.proto. Regenerate with launch/generate_proto.sh."""
