"""Read a model's tokenizer from its files: text to ids, ids to bytes, and a digest of what the ids mean.

The one importer of ``tokenizers`` in this package. What a token is in bytes is read from the decoder in tokenizer.json,
so that a stream is made of pieces and nothing is decoded twice; ``penstock.generation.detokenizer`` makes text of them.
Opens no file: it gets the files' contents. Pads and cuts nothing: rows for models that take arrays are
``compiler.data.text``'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.errors import ArtifactError, InvalidInput, missing_extra
from penstock.generation.token_pieces import ALPHABET, Pieces, read_pieces

FILE = "tokenizer.json"
FILES = (FILE, "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "genai_config.json")
"""Files of a model's directory that are read here; all but the first may be absent."""

MAX_FILE_BYTES = 64 * 1024**2
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_NFC_SHRINKS_BY = 4  # U+1FBE U+0308 U+0301, seven bytes, becomes U+0390, two; nothing shrinks more
_LARGEST_CONTEXT = 10**9  # transformers writes 1e30 for "not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """What a model's files say about its tokens.

    Attributes:
        digest: of vocabulary, added tokens and merges, "sha256:..."; two tokenizers with the same one mean the same
            text by the same ids.
        vocabulary: ids are below it.
        longest_token_bytes: no token stands for more bytes of text.
        named: special tokens by the names that chat templates use, such as ``bos_token``.
        end_ids: tokens that end an answer.
        context_tokens: most tokens of prompt and answer; None where the files do not say.
    """

    digest: str
    vocabulary: int
    longest_token_bytes: int
    named: Mapping[str, str]
    end_ids: frozenset[int]
    context_tokens: int | None


class Tokenizer:
    """A loaded tokenizer. Several threads may use it at the same time.

    Attributes:
        facts: what the files say.
        pieces: what each token stands for.
    """

    def __init__(self, library: Any, facts: TokenizerFacts, pieces: Pieces) -> None:
        self._library = library
        self.facts = facts
        self.pieces = pieces
        self._beginning: tuple[frozenset[str], frozenset[int]] = (frozenset(), frozenset())

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text.

        Args:
            add_special_tokens: begin (and end) as the model expects of a plain text; rendered chats have these
                tokens already.

        Raises:
            InvalidInput: the text holds half a surrogate pair, which no bytes stand for.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"the text holds half a surrogate pair, U+{ord(text[error.start]):04X} at character {error.start}; "
                "send whole characters",
                field="prompt",
            ) from None
        ids: list[int] = self._library.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def beginning_with(self, texts: Collection[str]) -> frozenset[int]:
        """Return the tokens whose text begins with one of these; what was asked last is kept, since all of the
        vocabulary is looked at."""
        asked = frozenset(texts)
        if self._beginning[0] != asked:
            wanted = tuple(text.encode() for text in asked)
            self._beginning = (asked, frozenset(self.pieces.beginning_with(wanted, self.facts.vocabulary)))
        return self._beginning[1]

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its own name, such as ``<|im_end|>``; None if there is none."""
        found: int | None = self._library.token_to_id(token)
        return found


def load(files: Mapping[str, bytes]) -> Tokenizer:
    """Load a tokenizer from the contents of a model's files, by name.

    Raises:
        ArtifactError: no tokenizer.json, one that is too large or malformed, or one whose tokens cannot be said in
            bytes one by one; the message says what to do. MissingExtra: the library is not installed.
    """
    content = files.get(FILE)
    if content is None:
        raise ArtifactError(
            f"the model has no {FILE}; write one with transformers: AutoTokenizer.from_pretrained(DIRECTORY)"
            ".save_pretrained(DIRECTORY)"
        )
    document = _json(FILE, content)
    library = library_of(content)
    names = named_tokens(files)
    tokens: dict[str, int] = library.get_vocab(with_added_tokens=True)
    vocabulary = 1 + max(tokens.values(), default=-1)
    pieces = read_pieces(document, library.id_to_token, vocabulary)
    facts = TokenizerFacts(
        digest=_digest(document),
        vocabulary=vocabulary,
        longest_token_bytes=_longest(document, tokens),
        named=names,
        end_ids=_end_ids(files, library, names),
        context_tokens=_context(files),
    )
    return Tokenizer(library, facts, pieces)


def library_of(content: bytes, *, name: str = FILE) -> Any:
    """Return the library's own tokenizer, which pads and cuts nothing, whatever its file says.

    Raises:
        ArtifactError: too large or malformed. MissingExtra: the library is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise missing_extra("tokenizers", "generate", "turning text into tokens") from error
    if len(content) > MAX_FILE_BYTES:
        raise _too_large(name, content)
    try:
        library = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for a malformed document
        raise ArtifactError(
            f"{name} is not one of the Hugging Face tokenizers library {tokenizers.__version__}: {str(error)[:200]}"
        ) from error
    library.no_padding()
    library.no_truncation()
    return library


def _too_large(name: str, content: bytes) -> ArtifactError:
    return ArtifactError(f"{name} has {len(content)} bytes, at most {MAX_FILE_BYTES} are read")


def _json(name: str, content: bytes) -> dict[str, Any]:
    if len(content) > MAX_FILE_BYTES:
        raise _too_large(name, content)
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{name} is no JSON object: {str(error)[:200]}") from error


def read_optional(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Return a JSON file's object, an empty one where the model has no such file.

    Raises:
        ArtifactError: too large, or no JSON object.
    """
    return _json(name, files[name]) if name in files else {}


def named_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the special tokens by the names that chat templates use, such as ``bos_token``.

    Raises:
        ArtifactError: as :func:`read_optional`.
    """
    return dict(_named(files))


def _named(files: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        document = read_optional(files, name)
        for key in _NAMED:
            value = document.get(key)
            token = value.get("content") if isinstance(value, dict) else value
            if isinstance(token, str):
                yield key, token


def _end_ids(files: Mapping[str, bytes], library: Any, names: Mapping[str, str]) -> frozenset[int]:
    """Return the ids that the engine's configuration names, else the generation's, else the tokenizer's own."""
    engine = read_optional(files, "genai_config.json").get("model")
    for document in (engine, read_optional(files, "generation_config.json")):
        said = document.get("eos_token_id") if isinstance(document, dict) else None
        ids = said if isinstance(said, list) else [said]
        if found := frozenset(token for token in ids if isinstance(token, int) and not isinstance(token, bool)):
            return found
    own = library.token_to_id(names["eos_token"]) if "eos_token" in names else None
    return frozenset() if own is None else frozenset({own})


def _context(files: Mapping[str, bytes]) -> int | None:
    engine = read_optional(files, "genai_config.json").get("model")
    for said in (
        engine.get("context_length") if isinstance(engine, dict) else None,
        read_optional(files, "tokenizer_config.json").get("model_max_length"),
    ):
        if isinstance(said, int | float) and 0 < said < _LARGEST_CONTEXT:
            return int(said)
    return None


def digest_of(files: Mapping[str, bytes]) -> str:
    """Return the digest that :class:`TokenizerFacts` has, without the library.

    Raises:
        ArtifactError: no tokenizer.json, or no JSON object.
    """
    if FILE not in files:
        raise ArtifactError(f"the model has no {FILE}")
    return _digest(_json(FILE, files[FILE]))


def _digest(document: Mapping[str, Any]) -> str:
    """Digest what decides which ids a piece of text has and what an id stands for, however the file writes it down."""
    model = document.get("model") or {}
    vocabulary = model.get("vocab") or {}
    entries = sorted(vocabulary.items(), key=lambda entry: entry[1]) if isinstance(vocabulary, dict) else vocabulary
    # files from before tokenizers 0.20 write a merge as one string
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or []]
    added = [[token["id"], token["content"], token["special"]] for token in document.get("added_tokens") or []]
    parts = [model.get("type"), entries, merges, sorted(added)]
    return "sha256:" + hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _longest(document: Mapping[str, Any], tokens: Mapping[str, int]) -> int:
    """Return the most bytes of text that one token can stand for; 0 where there is no bound.

    There is none where text is thrown away before it is split, or where one unknown token stands for all that is not
    in the vocabulary. SentencePiece's mark counts as three bytes: it may stand for itself, not only for a space.
    """
    model, splitter = document.get("model") or {}, document.get("pre_tokenizer")
    byte_level = _has_part(splitter, "ByteLevel")
    by_bytes = model.get("byte_fallback") is True and "<0x00>" in tokens
    whole = all(character in tokens for character in ALPHABET) if byte_level else by_bytes
    added = document.get("added_tokens") or []
    swallows = any(token.get("lstrip") or token.get("rstrip") for token in added)  # white space beside it
    shrinks_by = _shrinks_by(document.get("normalizer"))
    if not whole or swallows or shrinks_by is None or not _keeps_text(splitter):
        return 0
    names = {token["content"] for token in added}
    sizes = (len(name) if byte_level and name not in names else len(name.encode()) for name in tokens)
    return shrinks_by * max(sizes, default=0)


def _parts(document: Any, key: str) -> list[Any]:
    if document is None:
        return []
    return list(document.get(key) or []) if document.get("type") == "Sequence" else [document]


def _has_part(splitter: Any, kind: str) -> bool:
    return any(part.get("type") == kind for part in _parts(splitter, "pretokenizers"))


def _keeps_text(splitter: Any) -> bool:
    kept = ("ByteLevel", "Split", "Digits", "Punctuation", "Metaspace", "UnicodeScripts", "FixedLength")
    return all(
        part.get("type") in kept and part.get("behavior") != "Removed" for part in _parts(splitter, "pretokenizers")
    )


def _shrinks_by(normalizer: Any) -> int | None:
    """Return how many times shorter a text may get in bytes; None where there is no bound."""
    factor = 1
    for part in _parts(normalizer, "normalizers"):
        match part.get("type"):
            case "Prepend":
                pass
            case "NFC":
                factor *= _NFC_SHRINKS_BY
            case "Replace" if isinstance((part.get("pattern") or {}).get("String"), str):
                if len(str(part.get("content")).encode()) < len(part["pattern"]["String"].encode()):
                    return None
            case _:
                return None
    return factor
