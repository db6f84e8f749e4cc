"""Generated messages and stubs, in a private descriptor pool (see scripts/generate_proto.py). Do not edit."""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
