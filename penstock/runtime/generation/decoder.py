"""Run a decoder's graph over its slots: keys and values stay where they are, and onnxruntime works on them there.

Owns the session and the memory of all slots. Keys and values of a slot lie at a fixed place for as many tokens as the
context has; neighbouring slots are one batch, so a run over any of them binds memory and copies nothing. Memory that no
token has needed is not resident. Decides nothing: which tokens run in which slots is said by its caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import ArtifactError, Internal
from penstock.runtime.generation import GenerationOptions
from penstock.runtime.generation.decoder_file import DecoderFile
from penstock.runtime.onnx import RUNTIME_ERRORS, open_session

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_SESSION = {
    # threads that look out for work take the CPU from whoever else has some: three times slower on a busy machine
    "session.intra_op.allow_spinning": "0",
}


class Decoder:
    """One session, and keys and values of ``options.slots`` slots, each for ``context_tokens`` tokens."""

    def __init__(self, file: DecoderFile, options: GenerationOptions, context_tokens: int) -> None:
        """Open the session, and run one token to see that the graph is what its configuration says.

        Raises:
            ArtifactError: not a model that this runtime accepts, or not one for slots.
        """
        self._file, self._context = file, context_tokens
        self._session: Any = open_session(file.path, options.provider, options.threads, _SESSION)
        types = {arg.name: arg.type for arg in (*self._session.get_inputs(), *self._session.get_outputs())}
        self._kv_type = _float_type(types, file.past_names[0] % 0, file.path.name)
        self._logits_type = _float_type(types, file.logits_name, file.path.name)
        shape = (file.layers, 2, options.slots, file.kv_heads, context_tokens, file.head_size)
        try:
            self._kv = np.zeros(shape, self._kv_type)
            self._logits = np.empty(max(options.slots, options.chunk_tokens) * file.vocabulary, self._logits_type)
        except MemoryError as error:
            raise ArtifactError(
                f"{file.path.name}: keys and values of {options.slots} slots with {context_tokens} tokens each are "
                f"{prod(shape) * np.dtype(self._kv_type).itemsize / 1e9:.1f} GB, more than this machine gives; set "
                "fewer slots or context_tokens"
            ) from error
        self._bindings: dict[tuple[int, int], Any] = {}
        try:
            self.run(0, np.zeros((1, 1), np.int64), (1,))
        except Internal as error:
            raise ArtifactError(f"{file.path.name}: it does not run in slots: {error.message}") from error

    @property
    def kv_bytes_per_token(self) -> int:
        file = self._file
        return file.layers * 2 * file.kv_heads * file.head_size * int(np.dtype(self._kv_type).itemsize)

    def run(self, first: int, ids: NDArray[np.int64], lengths: Sequence[int]) -> NDArray[Any]:
        """Compute tokens in neighbouring slots, and write their keys and values.

        Args:
            first: the slot of the first row.
            ids: tokens [rows, tokens]; several tokens only for a single row, which the operator demands.
            lengths: tokens that each row's slot holds afterwards, these included.

        Returns:
            Logits [rows, tokens, vocabulary], to be read before the next run.

        Raises:
            Internal: the runtime failed; what the slots hold is unknown.
        """
        rows, tokens = ids.shape
        ids = np.ascontiguousarray(ids, np.int64)  # its address is bound
        mask = (np.arange(max(lengths)) < np.asarray(lengths)[:, None]).astype(np.int64)
        logits = self._logits[: rows * tokens * self._file.vocabulary].reshape(rows, tokens, self._file.vocabulary)
        binding = self._bound(first, rows)
        file = self._file
        for name, array in ((file.ids_name, ids), (file.mask_name, mask)):
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        binding.bind_output(file.logits_name, "cpu", 0, self._logits_type, logits.shape, logits.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except RUNTIME_ERRORS as error:
            raise Internal(f"the model failed: {str(error)[:500]}") from error
        return logits

    def swap(self, one: int, other: int, tokens: int) -> None:
        """Let two slots change places, of which neither holds more than so many tokens."""
        for layer in self._kv:  # what is set aside stays in the processor's cache
            here, there = layer[:, one, :, :tokens], layer[:, other, :, :tokens]
            kept = here.copy()
            here[:] = there
            there[:] = kept

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the beginning of one slot to another."""
        self._kv[:, :, target, :, :tokens] = self._kv[:, :, source, :, :tokens]

    def close(self) -> None:
        self._bindings.clear()
        self._session = None
        self._kv = self._logits = np.empty(0, np.float32)

    def _bound(self, first: int, rows: int) -> Any:
        """Return a binding of keys and values; each is made once, since a run needs two for each layer."""
        binding = self._bindings.get((first, rows))
        if binding is None:
            binding = self._bindings[first, rows] = self._session.io_binding()
            shape = (rows, *self._kv.shape[3:])
            for layer, part in np.ndindex(self._kv.shape[:2]):
                place = ("cpu", 0, self._kv_type, shape, self._kv[layer, part, first].ctypes.data)
                binding.bind_input(self._file.past_names[part] % layer, *place)
                binding.bind_output(self._file.present_names[part] % layer, *place)
        return binding


def _float_type(types: dict[str, str], name: str, model: str) -> Any:
    if types.get(name) not in _FLOATS:
        raise ArtifactError(f"{model}: tensor {name!r} is {types.get(name, 'missing')}; slots need float or float16")
    return _FLOATS[types[name]]
