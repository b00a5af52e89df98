"""Where models lie: a folder, a remote folder, the models shipped with spexmap, or Hugging Face."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from engine.errors import ModelNotFound

MODEL_FILES = ("config.json", "lexicon.json", "model.safetensors", "tokenizer.json")
"""The files that decide what a model does, in the order of the fingerprint. Weights come from safetensors only."""


def find_model(path_or_id: str | Path) -> Path:
    """Return the local folder of a model.

    Looked for in this order: the path as given, a remote folder (``s3://...``, any fsspec URL; downloaded), a model shipped with
    spexmap under the last part of the name, a Hugging Face id ``owner/name`` (downloaded).

    Raises
    ------
    ModelNotFound
        Nothing was found, or a file is missing; the message says where was looked.
    """
    text = str(path_or_id)
    if "://" in text:
        return _complete(_download(text), text)
    for folder in (Path(text).expanduser(), *shipped_models(Path(text).name)):
        if folder.is_dir():
            return _complete(folder, text)
    if text.count("/") == 1 and not text.startswith((".", "/", "~", "models/")):
        return _complete(_from_hub(text), text)
    raise ModelNotFound(f"no model at {text!r}, and none of that name is shipped with spexmap; shipped: {', '.join(shipped_names()) or 'none'}")


def shipped_models(name: str) -> list[Path]:
    """Return the folders in which a shipped model of this name may lie."""
    return [root / name for root in _roots()] if name else []


def shipped_names() -> list[str]:
    """Return the names of the models shipped with spexmap."""
    return sorted({each.parent.name for root in _roots() if root.is_dir() for each in root.glob("*/config.json")})


def _roots() -> list[Path]:
    """Return the folders of shipped models: beside the packages in a checkout, or the data package of an installation."""
    installed = find_spec("models")
    places = list(installed.submodule_search_locations or []) if installed is not None else []
    return [Path(__file__).resolve().parents[1] / "models", *map(Path, places)]


def _complete(folder: Path, asked: str) -> Path:
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelNotFound(f"model {asked!r} lacks {', '.join(missing)}; a model folder holds {', '.join(MODEL_FILES)}")
    return folder


def _download(url: str) -> Path:
    import fsspec

    folder = Path(tempfile.mkdtemp(prefix="spexmap-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in MODEL_FILES:
        try:
            with fsspec.open(f"{url.rstrip('/')}/{name}", "rb") as source:
                content = source.read()
            if name.endswith(".json"):
                json.loads(content)  # a server that answers every address with a page
            (folder / name).write_bytes(content)
        except Exception as error:  # clients of object stores raise classes of their own, without a common root
            shutil.rmtree(folder, ignore_errors=True)
            who = urlsplit(url).netloc.rpartition("@")[0]
            reason = f"{type(error).__name__}: {error}"
            raise ModelNotFound(f"model {url!r}: {name} could not be read ({reason.replace(f'{who}@', '***@') if who else reason})") from None
    return folder


def _from_hub(identifier: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(identifier, allow_patterns=list(MODEL_FILES)))
    except Exception as error:
        raise ModelNotFound(f"no model at {identifier!r}, and Hugging Face does not give one of that id ({type(error).__name__})") from error


def fingerprint(folder: Path) -> str:
    """Return the SHA-256, in hex, of the files that decide what a model does, each with its name and length."""
    digest = hashlib.sha256()
    for name in MODEL_FILES:
        content = (folder / name).read_bytes()
        digest.update(f"{name}:{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
