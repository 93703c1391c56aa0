"""Scores where others see them: on the Hub, and as a widget in a notebook."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.chromium import CHROMIUM
from helpers.command_line import refused
from helpers.comparisons import scored
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

import ecstruct
from ecstruct import ExtractiveScores, explore, push_to_hub
from ecstruct.report import widget

CARD = "---\nlicense: mit\n---\n# A model\n\nIts description | with a bar.\n"


class Hub:
    """Repositories in memory, with what each commit adds."""

    def __init__(self, folder: Path, **files: bytes) -> None:
        self.folder, self.files = folder, dict(files)
        self.made: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.made.append((repo_id, options))

    def hf_hub_download(self, repo_id: str, name: str) -> str:
        if name not in self.files:
            raise EntryNotFoundError("404: no such file")
        (self.folder / "fetched").write_bytes(self.files[name])
        return str(self.folder / "fetched")

    def create_commit(self, repo_id: str, operations: list[Any], commit_message: str) -> Any:
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path, **{"README.md": CARD.encode()})
    for name in ("create_repo", "hf_hub_download", "create_commit"):
        call = getattr(hub, name)
        monkeypatch.setattr(HfApi, name, lambda self, *a, call=call, **options: call(*a, **options))
    return hub


def test_a_push_adds_files_and_a_section_and_leaves_the_rest(hub: Hub, tmp_path: Path) -> None:
    scores = scored("llama")
    assert push_to_hub(scores, "me/mine", private=True) == "https://hub/me/mine/commit/1"
    assert hub.made == [("me/mine", {"private": True, "exist_ok": True})]
    assert hub.files.keys() == {"README.md", "ecstruct/scores.nc", "ecstruct/report.html"}
    (tmp_path / "read.nc").write_bytes(hub.files["ecstruct/scores.nc"])
    assert ExtractiveScores.load(tmp_path / "read.nc").dataset.equals(scores.dataset)
    assert b"hf_hub_download" in hub.files["ecstruct/report.html"]
    card = hub.files["README.md"].decode()
    assert card.startswith(CARD)
    top = scores.top(1, "informative").iloc[0]
    assert f"MLP {top['layer']}" in card or f"head {top['layer']}.{top['head']}" in card
    assert f"on {len(scores.mlp['prompt'])} prompts" in card and "(ecstruct/report.html)" in card

    hub.files["README.md"] += b"\nMore, written later.\n"
    push_to_hub(scored("gpt2"), "me/mine", folder="other")
    again = hub.files["README.md"].decode()
    assert again.startswith(CARD) and again.endswith("\nMore, written later.\n")
    assert again.count("## What finetuning changed") == 1 and "(other/report.html)" in again
    assert "ecstruct/scores.nc" in hub.files and "other/scores.nc" in hub.files


def test_a_repository_without_a_card_gets_one(hub: Hub) -> None:
    del hub.files["README.md"]
    push_to_hub(scored("llama"), "me/mine")
    assert hub.files["README.md"].startswith(b"<!-- begin of scores")


def test_what_the_hub_refuses_is_one_sentence(offline: None) -> None:
    refused(lambda: push_to_hub(scored("llama"), "me/mine"), "me/mine", "hf auth login")
    refused(lambda: push_to_hub(scored("llama"), "not a name"), "not a name")
    assert hf_hub_download  # what a report tells to call


def test_the_widget_shows_the_page_of_the_scores() -> None:
    shown = explore(scored("llama"), height=500)
    assert shown.height == 500 and "people that Ada knows speak" in shown.page
    assert shown.chosen == {}


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_what_is_chosen_comes_back_to_python(tmp_path: Path) -> None:
    """The widget's script in a browser, with a model as anywidget gives it."""
    from playwright.sync_api import sync_playwright

    shown = explore(scored("llama"))
    state = json.dumps({"page": shown.page, "height": shown.height}).replace("</", "<\\/")
    page = f"""<div id="here"></div><script type="module">
    {shown._esm.replace("export default", "const widget =")}
    const state = {state}, kept = [], get = (name) => state[name];
    const set = (name, value) => (state[name] = value), save_changes = () => kept.push(1);
    const model = {{ get, set, save_changes }};
    window.end = widget.render({{ model, el: document.getElementById("here") }});
    window.state = state; window.kept = kept;
    </script>"""
    (tmp_path / "page.html").write_text(page)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto((tmp_path / "page.html").as_uri())
        tab.wait_for_function("window.state && state.chosen")
        first = tab.evaluate("state.chosen")
        assert first["score"] == "informative" and first["part"] in ("MLP", "attention")
        tab.frame_locator("iframe").locator("[data-choose=layer]").select_option("2")
        tab.wait_for_function("state.chosen.layer === 2 && kept.length > 1")
        assert tab.evaluate("state.chosen") == {**first, "layer": 2}
        browser.close()


def test_without_anywidget_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    refused(lambda: explore(scored("llama")), "pip install anywidget")
    assert widget.explore is ecstruct.explore
