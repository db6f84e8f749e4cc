"""A language model in service: files become a tokenizer, a template and a process that generates, and prove themselves.

The counterpart of ``penstock.hosting.loading`` for variants that answer token by token: the one way from verified files
to a model that answers texts, for the device and the core. Golden vectors are replayed through the very process that
will serve: every token has to be equal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from penstock.artifact import golden
from penstock.artifact.manifests import VariantSpec
from penstock.artifact.variant_files import VariantFiles
from penstock.errors import ArtifactError, ConfigError, PenstockError
from penstock.generation import chat_template, golden_chats, tokenizer
from penstock.generation.plane import TextRequest
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation import prompts
from penstock.hosting.generation.frames import Model
from penstock.hosting.generation.generator import Generator, Measures
from penstock.hosting.generation.managed.generator import ManagedGenerator
from penstock.hosting.generation.managed.vllm import ManagedServers
from penstock.hosting.generation.process import ProcessGenerator
from penstock.hosting.generation.prompts import Vocabulary
from penstock.hosting.generation.remote import RemoteGenerator
from penstock.hosting.generation.settings import GenerationSettings, TextLimits
from penstock.openai import oip_texts
from penstock.process.telemetry import LogSettings, log
from penstock.runtime.generation import EngineFacts
from penstock.wire.tensors import TensorSpec

PROMPT_IDS, TOKEN_IDS = "prompt_ids", "token_ids"
"""Names of the golden arrays of such a variant: prompts [R, P], and the tokens [R, K] that follow them greedily."""

_TEMPLATES = (chat_template.FILE, golden_chats.FILE)
_LOG = logging.getLogger(__name__)


def read_files(directory: Path) -> dict[str, bytes]:
    """Read those files of a model that say how it reads prompts."""
    names = (*tokenizer.FILES, *_TEMPLATES)
    return {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}


class TextModel:
    """One language model that answers.

    Attributes:
        spec: of its variant.
        reads: how it reads prompts.
        generator: makes tokens.
    """

    def __init__(self, spec: VariantSpec, reads: Vocabulary, generator: Generator) -> None:
        self.spec, self.reads, self.generator = spec, reads, generator

    def __repr__(self) -> str:
        return f"TextModel({self.spec.model!r}, {self.generator!r})"

    @property
    def facts(self) -> EngineFacts:
        """Return what its engine can take."""
        return self.generator.facts

    def token_bytes(self, token: int) -> bytes:
        """Return what a token stands for."""
        return self.reads.tokenizer.pieces.bytes_of(token)

    async def prepared(
        self, request: TextRequest, limits: TextLimits, *, id: str, seed: int, at: datetime
    ) -> GenerationRequest:
        """Return what the engine is asked for a request, as :func:`penstock.hosting.generation.prompts.prepared`; in a
        thread where that takes time.

        Raises:
            InvalidInput: as there.
        """
        prepare = partial(prompts.prepared, request, self.reads, self.facts, limits, id=id, seed=seed, at=at)
        is_choice = self.reads.answer is not None and self.reads.answer.is_choice  # the vocabulary is looked at, once
        return prepare() if prompts.is_quick(request) and not is_choice else await asyncio.to_thread(prepare)

    def generate(
        self, request: GenerationRequest, *, deadline: float, priority: int = 0
    ) -> AsyncGenerator[TokenEvent, None]:
        """Answer; see :meth:`penstock.hosting.generation.generator.Generator.generate`."""
        return self.generator.generate(request, deadline=deadline, priority=priority)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return what metadata say that it takes; its artifact lists what its golden vectors are."""
        return oip_texts.INPUTS

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return what metadata say that it gives."""
        return oip_texts.OUTPUTS

    async def close(self, timeout_s: float = 0.0) -> None:
        """Give what runs ``timeout_s``, and end the process; idempotent."""
        await self.generator.close(timeout_s)


async def load(
    spec: VariantSpec,
    files: VariantFiles,
    settings: GenerationSettings,
    *,
    threads: int = 0,
    measures: Measures | None = None,
    log_settings: LogSettings | None = None,
    managed: ManagedServers | None = None,
) -> TextModel:
    """Load a variant and let it prove itself: a first token, then its golden vectors.

    Args:
        managed: models that servers of ours run, in place of the variant's own engine.

    Raises:
        ArtifactError: files that are no model, or one that continues its golden prompts in another way on this machine.
        InvalidInput: an engine or provider that is not known here. MissingExtra: a library is not installed.
        Unavailable: its process ended, or made no token in time; no server of others made one.
        ConfigError: a URL of a server is none, a managed server has wrong settings, or neither can answer as was
            certified. MissingToolchain: a managed server has no interpreter.
    """
    directory = files.weights.parent
    reads = await asyncio.to_thread(_vocabulary, spec, directory)
    generator: ProcessGenerator | RemoteGenerator | ManagedGenerator
    if managed is not None and spec.model in managed.settings:
        _refuse_choices(spec, "serving.generation.vllm")
        generator = await asyncio.to_thread(managed.generator, spec.model, reads.tokenizer.facts, measures)
    elif urls := settings.remote.urls.get(spec.model):
        _refuse_choices(spec, "generation.remote.urls")
        generator = _remote(spec, reads, settings, urls, measures)
    else:
        options = settings.options(spec.provider, threads=threads)
        model = Model(engine=spec.engine, directory=str(directory), options=options)
        generator = ProcessGenerator(
            spec.model, model=model, settings=settings, measures=measures, log_settings=log_settings
        )
    try:
        await generator.start()
        _check_choices(spec, generator.facts)
        await _prove(spec, files, generator)
    except BaseException:
        await asyncio.shield(generator.close(0.0))
        raise
    return TextModel(spec, reads, generator)


def _refuse_choices(spec: VariantSpec, setting: str) -> None:
    """
    Raises:
        ConfigError: answers are options, and servers choose token by token.
    """
    if spec.answer and spec.answer.is_choice:
        raise ConfigError(
            f"{spec.model}: its answers are options, scored as whole answers, and a server of OpenAI's API scores "
            f"none: what it would choose token by token is not what was certified; take the model out of {setting}"
        )


def _remote(
    spec: VariantSpec,
    reads: Vocabulary,
    settings: GenerationSettings,
    urls: Sequence[str],
    measures: Measures | None,
) -> RemoteGenerator:
    """Make a generator of servers that run this model already; its weights are not loaded here.

    Raises:
        ConfigError: a URL is none, or nobody says how long the context is.
    """
    told, remote = reads.tokenizer.facts, settings.remote
    context_tokens = settings.engine.context_tokens or told.context_tokens
    if context_tokens is None:
        raise ConfigError(
            f"{spec.model}: its files do not say how many tokens it can take; set generation.engine.context_tokens"
        )
    facts = EngineFacts(
        context_tokens=context_tokens,
        vocabulary=told.vocabulary,
        slots=remote.max_outstanding * len(urls),
        end_ids=told.end_ids,
        kv_bytes_per_token=0,
        grammars=frozenset({"json_schema", "regex", "choice"}),
    )
    return RemoteGenerator(
        spec.model, urls, facts=facts, settings=remote, token=remote.token or None, measures=measures
    )


def _check_choices(spec: VariantSpec, facts: EngineFacts) -> None:
    """Refuse an engine that cannot answer as was certified.

    Raises:
        ArtifactError: answers are options, and it scores none.
    """
    if spec.answer and spec.answer.is_choice and not facts.scores_options:
        raise ArtifactError(
            f"{spec.model}, {spec.role} variant for {spec.target}: its answers are options, and the engine that runs "
            "it here (onnxruntime-genai) scores none; compile a model that runs in slots, on a processor"
        )


def _vocabulary(spec: VariantSpec, directory: Path) -> Vocabulary:
    contents = read_files(directory)
    loaded, template = tokenizer.load(contents), chat_template.load(contents)
    if template is not None:
        golden_chats.check(contents, loaded, template)
    if spec.answer and spec.answer.is_choice:
        loaded.beginning_with(spec.answer.stop)  # now: no request has to wait until all of the vocabulary is read
    return Vocabulary(tokenizer=loaded, template=template, answer=spec.answer or None)


async def _prove(spec: VariantSpec, files: VariantFiles, generator: Generator) -> None:
    """Continue the golden prompts and compare every token."""
    if files.is_golden_damaged:
        return
    if files.golden is None:
        log(_LOG, logging.WARNING, "no golden vectors: nothing shows that this machine computes what was compiled",
            model=spec.model, role=spec.role, target=spec.target)  # fmt: skip
        return
    expected = golden.decode(files.golden)
    try:
        prompts, tokens = expected.inputs[PROMPT_IDS], expected.outputs[TOKEN_IDS]
    except KeyError as error:
        raise ArtifactError(f"golden vectors of a language model need {PROMPT_IDS} and {TOKEN_IDS}") from error
    for row, (prompt, wanted) in enumerate(zip(prompts.tolist(), tokens.tolist(), strict=True)):
        request = GenerationRequest(
            id=f"golden-{row}", prompt_ids=tuple(prompt), max_new_tokens=len(wanted), ignore_end=True
        )
        try:
            async with contextlib.aclosing(generator.generate(request, deadline=math.inf)) as events:
                found = [event.token async for event in events]
        except PenstockError as error:
            raise ArtifactError(f"{spec.model}: golden prompt {row} is not continued: {error.message}") from error
        if found != wanted:
            place = next(at for at, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other)
            raise ArtifactError(
                f"{spec.model}, {spec.role} variant for {spec.target}: golden prompt {row} is continued with token "
                f"{found[place]} at place {place}, where it was {wanted[place]} when it was compiled"
            )
