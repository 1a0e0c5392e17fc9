"""The part of the small hub that takes uploads: accounts, repositories, checks of cards, commits, large files."""

import base64
import hashlib
import json
import re
from collections.abc import Callable

import yaml


# Patterns of the hub for the metadata of a card.
HUB_NAME = re.compile(r"([\w-]+/)?[\w.-]+", re.ASCII)
LICENSE_IDS = {"apache-2.0", "mit"}
TASK = "question-answering"


class Uploads:
    """Mixin for the handler of requests: those that come with an upload."""

    def take_upload(self) -> bool:
        """Answer a request that belongs to an upload; return whether it is one."""
        path = self.path.partition("?")[0]
        for pattern, method in UPLOADS.items():
            if match := re.fullmatch(pattern, path):
                self.answer_upload(getattr(self, method), match.groups())
                return True
        return False

    def answer_upload(self, method: Callable, parts: tuple[str, ...]) -> None:
        account = self.server.accounts.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if account is None and self.command != "PUT":  # a large file has an address that nobody else knows
            self.send(401, {"X-Error-Message": "Invalid username or password."})
        else:
            self.send(*method(account, *parts))

    def account_of_token(self, account: dict) -> tuple:
        return 200, {}, account

    def create_repository(self, account: dict) -> tuple:
        asked = json.loads(self.body)
        owner = asked["organization"] or account["name"]
        if owner not in (account["name"], "Lab"):
            return 403, {"X-Error-Message": "You don't have the rights to create a model under this namespace"}
        return 200, {}, {"url": f"http://{self.headers['Host']}/{owner}/{asked['name']}"}

    def check_card(self, _: dict) -> tuple:
        problems = card_problems(json.loads(self.body)["content"])
        answer = {"errors": [{"message": problem} for problem in problems], "warnings": []}
        return 400 if problems else 200, {}, answer

    def choose_ways(self, _: dict, *__) -> tuple:
        files = json.loads(self.body)["files"]
        large = (".safetensors", ".bin")
        ways = {True: "lfs", False: "regular"}
        modes = [{"path": f["path"], "uploadMode": ways[f["path"].endswith(large)]} for f in files]
        return 200, {}, {"files": [mode | {"shouldIgnore": False} for mode in modes]}

    def name_large_files(self, _: dict, *__) -> tuple:
        asked = json.loads(self.body)["objects"]
        place = f"http://{self.headers['Host']}/lfs/"
        objects = [entry | {"actions": {"upload": {"href": place + entry["oid"]}}} for entry in asked]
        return 200, {}, {"transfer": "basic", "objects": objects}

    def take_large_file(self, _: None, name: str) -> tuple:
        assert hashlib.sha256(self.body).hexdigest() == name
        self.server.large[name] = self.body
        return 200, {}

    def commit(self, _: dict, repository: str, branch: str) -> tuple:
        if len(self.server.uploads) >= self.server.room:
            return 503, {}
        entries = [json.loads(line) for line in self.body.splitlines()]
        message, files = "", {}
        for kind, value in ((entry["key"], entry["value"]) for entry in entries):
            if kind == "header":
                message = value["summary"]
            elif kind == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        self.server.uploads.append((repository, branch, message, files))
        address = f"http://{self.headers['Host']}/{repository}/commit/{len(self.server.uploads)}"
        return 200, {}, {"commitUrl": address, "commitOid": f"{len(self.server.uploads):040}"}


UPLOADS = {
    r"/api/whoami-v2": "account_of_token",
    r"/api/repos/create": "create_repository",
    r"/api/validate-yaml": "check_card",
    r"/api/models/([^/]+/[^/]+)/preupload/(\w+)": "choose_ways",
    r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": "name_large_files",
    r"/lfs/(\w+)": "take_large_file",
    r"/api/models/([^/]+/[^/]+)/commit/(\w+)": "commit",
}


def card_problems(card: str) -> list[str]:
    """Return what the hub would refuse in a card."""
    data = yaml.safe_load(card.split("---\n")[1])
    languages = data.get("language", [])
    problems = [f"language {code}" for code in languages if not re.fullmatch("[a-z]{2,3}", code)]
    names = [*data.get("datasets", []), *([data["base_model"]] if "base_model" in data else [])]
    for result in (result for entry in data.get("model-index", []) for result in entry["results"]):
        names.append(result["dataset"]["type"])
        if result["task"]["type"] != TASK or not isinstance(result["dataset"]["name"], str) or not result["metrics"]:
            problems.append(f"result {result}")
        problems += [f"metric {metric}" for metric in result["metrics"] if not {"type", "value"} <= metric.keys()]
    problems += [f"name {name}" for name in names if not HUB_NAME.fullmatch(name)]
    license = data.get("license", "mit")
    return problems if license in LICENSE_IDS else [*problems, f"license {license}"]
