"""The few calls of NVIDIA's driver that building and running engines need, through ctypes: no further package.

Memory of the device is freed with the process.
"""

from __future__ import annotations

import ctypes

from protocol import InputError

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_BYTES = 256


class Device:
    """The first GPU, with its primary context current.

    Raises:
        InputError: there is no driver, or it has no GPU.
    """

    def __init__(self) -> None:
        try:
            self._driver = ctypes.CDLL(_LIBRARY)
        except OSError:
            raise InputError(f"no NVIDIA driver here ({_LIBRARY} is not found)") from None
        self._check("cuInit", 0)
        device, context, version = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int()
        self._check("cuDeviceGet", ctypes.byref(device), 0)
        self._check("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._check("cuCtxSetCurrent", context)
        self._check("cuDriverGetVersion", ctypes.byref(version))
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._check("cuDeviceGetName", name, _NAME_BYTES, device)
        self.name = name.value.decode("utf-8", "replace")
        self.driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
        self.compute_capability = f"{self._attribute(_MAJOR, device)}.{self._attribute(_MINOR, device)}"

    def allocate(self, size_bytes: int) -> int:
        """Allocate so many bytes on the device and return their address."""
        address = ctypes.c_uint64()
        self._check("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, size_bytes)))
        return address.value

    def upload(self, address: int, data: bytes) -> None:
        self._check("cuMemcpyHtoD_v2", ctypes.c_uint64(address), data, ctypes.c_size_t(len(data)))

    def download(self, address: int, size_bytes: int) -> bytes:
        buffer = ctypes.create_string_buffer(max(1, size_bytes))
        self._check("cuMemcpyDtoH_v2", buffer, ctypes.c_uint64(address), ctypes.c_size_t(size_bytes))
        return buffer.raw[:size_bytes]

    def stream(self) -> int:
        """Make a stream and return its handle; never null."""
        handle = ctypes.c_void_p()
        self._check("cuStreamCreate", ctypes.byref(handle), 0)
        return handle.value or 0

    def synchronize(self, stream: int) -> None:
        self._check("cuStreamSynchronize", ctypes.c_void_p(stream))

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._check("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def _check(self, function: str, *arguments: object) -> None:
        status = getattr(self._driver, function)(*arguments)
        if status != 0:
            raise InputError(f"the NVIDIA driver refuses {function} (error {status}); see nvidia-smi")
