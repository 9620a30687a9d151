"""Folders of small files on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baklava.errors import UserError, first_line

FILES = ["*.json", "README.md"]


def download_folder(repo: str, **options: Any) -> Path:
    """The local copy of a repository's files; options are those of `snapshot_download`, such as `revision`.

    Raises `UserError` where the repository is not there, or not in the local cache while the hub is out of reach.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=FILES, **options))
    except HFValidationError:
        raise UserError(f"{repo}: neither a folder here nor a name on the hub such as org/name") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{repo}: not found on the hub ({first_line(error)})") from None


def upload_folder(folder: Path, repo: str, *, private: bool) -> str:
    """Make the repository where there is none, and upload the files; returns the address of the commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=FILES))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise UserError(f"{repo}: cannot upload {folder} ({first_line(error)})") from None
