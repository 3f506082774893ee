"""`steer-heal push FOLDER --repo OWNER/NAME`: an exported folder onto the hub.

Knows nothing of what is in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from steer_heal.errors import InputError, printable
from steer_heal.reading import reachable


@dataclass(frozen=True)
class Push:
    """Put an exported folder onto the Hugging Face hub, under your login there.

    Attributes:
        folder: What `steer-heal export` wrote.
        repo: Repository to write to, OWNER/NAME; made if it does not exist.
        private: Make it visible to you alone.
        dry_run: Say what would be uploaded, and send nothing.
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    repo: str
    private: bool = False
    dry_run: bool = False

    def __call__(self) -> int:
        """Check that others could load it, then upload."""
        folder = reachable(self.folder)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        self._check(folder)
        size = sum(path.stat().st_size for path in files)
        told = f"{len(files)} files, {size / 1e6:.1f} MB, {', '.join(path.name for path in files)}"
        if self.dry_run:
            print(printable(f"would go to {self.repo}: {told}"))
            return 0
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            HfApi().create_repo(self.repo, private=self.private, exist_ok=True)
            found = HfApi().upload_folder(repo_id=self.repo, folder_path=folder, commit_message="Add the export")
        except (HfHubHTTPError, OSError) as problem:
            first = (str(problem).strip() or type(problem).__name__).splitlines()[0]
            raise InputError(
                f"--repo {self.repo!r}: the hub did not take it ({first}): log in with `hf auth login`, "
                "check the network and your right to write there"
            ) from problem
        print(printable(f"{found.commit_url}: {told}"))
        return 0

    def _check(self, folder: Path) -> None:
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            validate_repo_id(self.repo)
        except HFValidationError as problem:
            raise InputError(f"--repo {self.repo!r}: give OWNER/NAME ({problem})") from problem
        if not (folder / "README.md").is_file():
            raise InputError(f"folder {self.folder!r} has no README.md: give one that `steer-heal export` wrote")
        config = folder / "adapter_config.json"
        base = json.loads(config.read_text("utf-8"))["base_model_name_or_path"] if config.is_file() else ""
        if Path(base).is_absolute():
            raise InputError(
                f"folder {self.folder!r}: its base {base!r} is a folder of this machine, which nobody else can load: "
                "export again with --base OWNER/NAME, or --merged"
            )
