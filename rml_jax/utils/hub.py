"""Models on the Hugging Face hub, by the name of their repository: USER/MODEL or USER/MODEL@REVISION.

Needs huggingface_hub (`pip install 'rml_jax[hub]'`), whose settings hold: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and
HF_TOKEN.
"""

import dataclasses
import hashlib
import re
from pathlib import Path

from rml_jax.utils.errors import UserError

# As the hub names repositories; without a file's suffix.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_FILE_SUFFIXES = (".bin", ".ckpt", ".onnx", ".pt", ".pth", ".safetensors")
# Weights and what describes them. PyTorch's files are only fetched where there are no others.
_FILES = ("*.json", "*.md", "model*.safetensors", "SHA256SUMS*")
_TORCH_FILE = "pytorch_model.bin"


@dataclasses.dataclass(frozen=True)
class HubModel:
    """A model that was fetched from the hub.

    Attributes:
      folder: pathlib.Path of its files.
      repository: USER/MODEL.
      revision: hash of the commit.
      licence: what the repository's card names, or "none named".
    """

    folder: Path
    repository: str
    revision: str
    licence: str

    def __str__(self):
        return f"{self.repository}@{self.revision} (licence: {self.licence})"

    def as_json(self):
        """Returns what a run records about it, a dict of str."""
        return {"repository": self.repository, "revision": self.revision, "licence": self.licence}


def is_hub_name(name):
    """Returns whether a name is that of a repository on the hub rather than of a file or folder here."""
    name = str(name)
    return bool(_NAME.fullmatch(name)) and not name.endswith(_FILE_SUFFIXES) and not Path(name).exists()


def fetch(name):
    """Downloads a model, unless it is in huggingface_hub's cache, and checks the hashes of its files.

    Args:
      name: USER/MODEL or USER/MODEL@REVISION, a branch, a tag or a commit.

    Returns:
      HubModel.

    Raises:
      UserError: without huggingface_hub or network, for a repository that doesn't exist or is private, for a download
        that is interrupted, or a file with another hash.
    """
    hub = _import_hub(name)
    repository, _, revision = name.partition("@")

    def download(patterns):
        return Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))

    try:
        folder = download(list(_FILES))
        if not any(folder.glob("model*.safetensors")):
            folder = download([*_FILES, _TORCH_FILE])
    except Exception as error:  # The client raises errors of its own, of httpx and of the system.
        raise UserError(f"{name}: {_reason(error)}") from error
    for path in sorted(folder.iterdir()):
        _check_hash(name, path)
    return HubModel(folder, repository, folder.name, _licence(hub, folder))


def push(folder, name, card):
    """Uploads an exported model as one commit. The repository is made if it isn't there.

    Args:
      folder: pathlib.Path.
      name: USER/MODEL.
      card: name of the model card in the folder, which becomes the hub's README.md.

    Returns:
      URL of the commit.

    Raises:
      UserError: without huggingface_hub, network or a token with the right to write, or for an invalid name.
    """
    hub = _import_hub(name)
    files = [
        hub.CommitOperationAdd("README.md" if path.name == card else path.name, path)
        for path in sorted(folder.iterdir())
    ]
    api = hub.HfApi(library_name="rml_jax")
    try:
        api.create_repo(name, exist_ok=True)
        return api.create_commit(name, files, commit_message="Model exported by rml-jax").commit_url
    except Exception as error:  # See `fetch`.
        raise UserError(f"--push={name}: {_reason(error, 'upload')}; the model is in {folder}") from error


def _import_hub(name):
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{name}: no such file or folder here; a model on the Hugging Face hub needs huggingface_hub: "
            "pip install 'rml_jax[hub]'"
        ) from error
    return huggingface_hub


def _reason(error, work="download"):
    """Returns one line for an error of the client."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "the repository is gated: expected HF_TOKEN of a user to whom its owner gave access"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "no such file or folder here, and no such repository on the hub that can be read: expected another name, "
            "or HF_TOKEN for a private one"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision: expected a branch, a tag or a commit behind @"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        offline = errors.OfflineModeIsEnabled in (type(error), type(error.__cause__))
        cause = "HF_HUB_OFFLINE is set" if offline else "the hub can't be reached"
        return f"not (or not whole) in huggingface_hub's cache, and {cause}: expected a network connection"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"refused by the hub ({status}): expected HF_TOKEN of a user with the right to do this"
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"{first[:200]}; expected a whole {work}, the same command goes on"


def _check_hash(name, path):
    """Checks a file against the hash that the hub names it by; a wrong one is deleted from the cache.

    The cache's files are links to files named by their hash: SHA-256 for large files, git's SHA-1 for others. Where
    the file system has no links there is nothing to compare with.
    """
    stored = path.resolve()
    expected = stored.name
    if not path.is_symlink() or len(expected) not in (40, 64):
        return
    large = len(expected) == 64
    digest = hashlib.sha256() if large else hashlib.sha1(f"blob {stored.stat().st_size}\0".encode())
    with stored.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        path.unlink()
        stored.unlink()
        raise UserError(
            f"{name}: {path.name} has the {'SHA-256' if large else 'git hash'} {digest.hexdigest()}, expected "
            f"{expected}; it was deleted, run the command again to fetch it"
        )


def _licence(hub, folder):
    card = folder / "README.md"
    if not card.exists():
        return "none named"
    try:
        data = hub.ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (OSError, ValueError):
        return "none named"
    named = data.license_name if data.license == "other" and data.get("license_name") else data.license
    return str(named or "none named")
