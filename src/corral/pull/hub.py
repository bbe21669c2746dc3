"""Downloads from Hugging Face: whole, verified, and resumed where an earlier try left off.

The hub's own client starts over when it is interrupted (since 2.x), so the
bytes are fetched here; finding, naming, tokens, proxies and errors are its.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, and not marked as exported
    build_hf_headers,
    hf_raise_for_status,
)
from rich.console import Console
from rich.progress import Progress, TaskID

from corral.core.errors import PullError
from corral.pull.choice import RemoteFile, Variant, Wanted, check_complete, choose
from corral.pull.files import holds, progress_bar

# A connection that breaks is resumed this often in a row without a byte gained.
TRIES = 5
RETRY_WAIT_S = 1.0

# Silence longer than this is a broken connection.
SILENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Source:
    """A file as it was at one commit: what is resumed is what was begun."""

    repository: str
    commit: str
    file: RemoteFile


def download(wanted: Wanted, into: Path, console: Console) -> Path:
    """Fetch the model that is meant and return its file, the first of a split one. Raises PullError.

    What is there of an unfinished file stays, as ``FILE.….part``, and is gone
    on with next time.
    """
    try:
        with console.status(f"asking Hugging Face for the files of {wanted.repository}"):
            commit, files = _list(wanted)
        variant = choose(files, wanted)
        check_complete(variant)
        console.out(f"fetching {wanted.repository}: {_describe(variant)}", highlight=False)
        with progress_bar(console) as progress:
            targets = [_fetch(Source(wanted.repository, commit, file), into, progress) for file in variant.files]
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx2.TransportError) as error:
        raise PullError(_explain(wanted.repository, error)) from error
    console.out(f"{targets[0]} is there, {_verified(variant)}", highlight=False)
    return targets[0]


def _list(wanted: Wanted) -> tuple[str, list[RemoteFile]]:
    """The repository's files, and the commit that has them."""
    found = HfApi(library_name="corral").model_info(wanted.repository, files_metadata=True, timeout=SILENCE_S)
    files = [
        RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
        for file in found.siblings or []
    ]
    return found.sha or "main", files


def _describe(variant: Variant) -> str:
    files = "one file" if len(variant.files) == 1 else f"{len(variant.files)} files"
    return f"{variant.quant or variant.stem}, {files}, {variant.bytes / 1e9:.2f} GB"


def _verified(variant: Variant) -> str:
    return "checksum verified" if all(file.sha256 for file in variant.files) else "size verified"


def _fetch(source: Source, into: Path, progress: Progress) -> Path:
    file = source.file
    target = into / Path(file.path).name
    task = progress.add_task(target.name, total=file.bytes)
    if target.exists():
        _keep(target, file)
        progress.update(task, completed=file.bytes)
        return target
    # The mark keeps parts of different contents apart.
    part = target.with_name(f"{target.name}.{(file.sha256 or source.commit)[:12]}.part")
    _complete(source, part, progress, task)
    if not holds(part, file.bytes, file.sha256):
        part.unlink()
        raise PullError(f"'{file.path}' of '{source.repository}' came damaged and was removed; try again")
    os.replace(part, target)
    return target


def _keep(target: Path, file: RemoteFile) -> None:
    if not holds(target, file.bytes, file.sha256):
        raise PullError(f"'{target}' is there with other contents; move it away, or choose another directory")


def _complete(source: Source, part: Path, progress: Progress, task: TaskID) -> None:
    """Bring ``part`` to its full size, resuming what breaks off."""
    failures = 0
    while (have := _size(part)) < source.file.bytes:
        try:
            _append(source, part, progress, task)
        except httpx2.TransportError:
            failures = 1 if _size(part) > have else failures + 1
            if failures == TRIES:
                raise
            time.sleep(RETRY_WAIT_S)


def _append(source: Source, part: Path, progress: Progress, task: TaskID) -> None:
    have = _size(part)
    # Offsets count the file's own bytes, so that compression is refused.
    headers = {**build_hf_headers(library_name="corral"), "accept-encoding": "identity"}
    if have:
        headers["range"] = f"bytes={have}-"
    url = hf_hub_url(source.repository, source.file.path, revision=source.commit)
    with get_session().stream("GET", url, headers=headers, timeout=SILENCE_S) as response:
        hf_raise_for_status(response)
        # 200 to a range: this server cannot resume, the file comes from its start.
        resumed = response.status_code == httpx2.codes.PARTIAL_CONTENT
        progress.update(task, completed=have if resumed else 0)
        with part.open("ab" if resumed else "wb") as out:
            # In the sizes it comes in: what waits for a block to fill is lost when the connection breaks.
            for piece in response.iter_raw():
                out.write(piece)
                progress.advance(task, len(piece))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _explain(repository: str, error: Exception) -> str:
    match error:
        case GatedRepoError():
            return f"'{repository}' is gated: accept its terms on its page, then set HF_TOKEN to your token"
        case RepositoryNotFoundError():
            return f"'{repository}' is not on Hugging Face, or it is private: then set HF_TOKEN to your token"
        case HfHubHTTPError():
            return f"Hugging Face answered {error.response.status_code} for '{repository}'; try again later"
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set: nothing is fetched from Hugging Face"
        case HFValidationError():
            return f"'{repository}' cannot be the name of a repository: {error}"
    return f"Hugging Face cannot be reached ({type(error).__name__}); is this machine offline? A next try goes on here"
