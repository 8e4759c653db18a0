"""Upload an exported model to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from w2s_fast.errors import W2SError, one_line

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_push(repository: str) -> None:
    """Check that a repository can be pushed to, before a model is exported.

    Raises:
        W2SError: The name is no OWNER/NAME, huggingface_hub is missing, or nobody is logged in.
    """
    if not _NAME.fullmatch(repository):
        raise W2SError(f"--push is {repository!r}; expected OWNER/NAME of a model on the hub")
    try:
        from huggingface_hub import get_token
    except ImportError as err:
        raise W2SError("--push needs huggingface_hub: pip install 'w2s-fast[hf]'") from err
    if get_token() is None:
        raise W2SError("--push needs a token of the hub: `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repository: str, *, public: bool = False) -> str:
    """Upload the files of a folder as one commit, and return the address of the repository.

    A repository that exists keeps its visibility; a new one is private unless ``public``.

    Raises:
        W2SError: The hub refuses, or cannot be reached; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="w2s-fast")
    try:
        where = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload model of w2s-fast"
        )
    except Exception as err:  # the hub's client has used three HTTP libraries, with own errors
        raise W2SError(
            f"{repository} could not be written: {one_line(err)}; the model is in {folder}, try "
            f"again with `hf upload {repository} {folder}`"
        ) from err
    return str(where)
