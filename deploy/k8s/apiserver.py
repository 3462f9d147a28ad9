"""Apply every overlay to a real Kubernetes API server, which is built here: no cluster, no nodes, nothing runs in it.

    python deploy/k8s/apiserver.py [DIRECTORY]      what is built stays in DIRECTORY (.apiserver)

Needed: Go, and Debian's etcd-server. The server and kubectl are built of k8s.io/kubernetes (once, ten minutes of CPU,
some GB of Go's caches). The kinds that an operator brings are defined by the operator's own definitions, which are in
its Go module. What the server warns of, such as a pod that Pod Security's "restricted" would refuse, is an error, and
so is a field that it does not know. Then comes an update: jobs are deleted, another image is applied. There are no
controllers and no nodes, so nothing runs.
"""

import json
import re
import secrets
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import yaml

from apps.local import free_ports

K8S = Path(__file__).parent
KUBERNETES = "1.34.2"
OVERLAYS: dict[str, tuple[str, ...]] = {
    "overlays/local": (),
    "overlays/aws": ("examples/rebuild-on-ray.yaml",),
    "examples/external-secrets": (),
}
"""And what is applied beside one."""
OPERATORS = {
    "github.com/external-secrets/external-secrets@v1.3.2/config/crds/bases": (
        "external-secrets.io_externalsecrets", "external-secrets.io_secretstores",
    ),
    "github.com/kedacore/keda/v2@v2.21.0/config/crd/bases": ("keda.sh_scaledobjects",),
    "github.com/prometheus-operator/prometheus-operator@v0.85.0/example/prometheus-operator-crd": (
        "monitoring.coreos.com_podmonitors", "monitoring.coreos.com_prometheusrules",
    ),
    "github.com/ray-project/kuberay/ray-operator@v1.5.0/config/crd/bases": ("ray.io_rayjobs",),
}  # fmt: skip
"""A folder of a Go module -> the definitions in it of the kinds that we have objects of."""
APPLY = ("apply", "--server-side", "--warnings-as-errors", "--filename=-")
EXAMPLES = ("overlays/local/secrets.env", "overlays/aws/settings.env")


def go(directory: Path, *arguments: str) -> str:
    return subprocess.run(["go", *arguments], cwd=directory, check=True, stdout=subprocess.PIPE, text=True).stdout


def built(place: Path) -> None:
    """kube-apiserver and kubectl. Kubernetes names its own libraries by a version that is only in its repository."""
    commands = ("k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kubectl")
    told = json.loads(go(place, "mod", "download", "-json", f"k8s.io/kubernetes@v{KUBERNETES}"))
    staged = re.findall(r"^\s+(k8s\.io/\S+) v0\.0\.0$", Path(told["GoMod"]).read_text(), re.MULTILINE)
    version = f"v0.{KUBERNETES.removeprefix('1.')}"
    replaced = "\n".join(f"replace {name} => {name} {version}" for name in staged)
    wrapper = place / "kubernetes"
    wrapper.mkdir(exist_ok=True)
    head = f"module wrapper\n\ngo 1.24.0\n\nrequire k8s.io/kubernetes v{KUBERNETES}\n"
    (wrapper / "go.mod").write_text(f"{head}{replaced}\n")
    imports = "\n".join(f'import _ "{command}"' for command in commands)
    (wrapper / "commands.go").write_text(f"//go:build commands\n\npackage wrapper\n\n{imports}\n")
    go(wrapper, "mod", "tidy")
    said = f"-s -w -X k8s.io/component-base/version.gitVersion=v{KUBERNETES}"
    go(wrapper, "build", f"-ldflags={said}", "-o", f"{place / 'bin'}/", *commands)


def definitions(place: Path) -> str:
    """The operators' kinds, as their modules define them."""
    found = []
    for folder, names in OPERATORS.items():
        module, _, place_in_it = folder.partition("@")
        version, _, inside = place_in_it.partition("/")
        told = json.loads(go(place, "mod", "download", "-json", f"{module}@{version}"))
        found += [(Path(told["Dir"]) / inside / f"{name}.yaml").read_text() for name in names]
    return "\n---\n".join(found)


class Server:
    """etcd and an API server on it, on 127.0.0.1, for as long as the `with` lasts."""

    def __init__(self, place: Path, data: Path) -> None:
        self._place, self._data, self._token = place, data, secrets.token_hex(16)

    def __enter__(self) -> "Server":
        with ExitStack() as starting:
            etcd, peer, port = free_ports(3)
            self._config(port)
            self._start(
                starting,
                "etcd", f"--data-dir={self._data / 'etcd'}", "--initial-cluster", f"default=http://127.0.0.1:{peer}",
                *(f"--{kind}-client-urls=http://127.0.0.1:{etcd}" for kind in ("listen", "advertise")),
                *(f"--{kind}-peer-urls=http://127.0.0.1:{peer}" for kind in ("listen", "initial-advertise")),
            )  # fmt: skip
            key = self._data / "accounts.key"
            subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
            tokens = self._data / "tokens.csv"
            tokens.write_text(f"{self._token},admin,admin,system:masters\n")
            self._start(
                starting,
                f"{self._place / 'bin/kube-apiserver'}", "--bind-address=127.0.0.1", f"--etcd-servers=http://127.0.0.1:{etcd}",
                f"--secure-port={port}", f"--cert-dir={self._data / 'certificates'}", f"--token-auth-file={tokens}",
                "--service-account-issuer=https://kubernetes.default.svc", "--authorization-mode=RBAC",
                f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
                "--service-cluster-ip-range=10.96.0.0/16",
            )  # fmt: skip
            end = time.monotonic() + 120
            while self.kubectl("get", "--raw=/readyz", check=False).returncode:
                if time.monotonic() > end:
                    sys.exit(
                        f"The API server was not ready within two minutes:\n{self._log('kube-apiserver')[-3000:]}"
                    )
                time.sleep(0.5)  # between two looks
            self._running = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def kubectl(
        self, *arguments: str, check: bool = True, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Ends us with what it said where it fails, or where the server warns."""
        command = [f"{self._place / 'bin/kubectl'}", f"--kubeconfig={self._data / 'config'}", *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            sys.exit(f"kubectl {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}")
        return done

    def _config(self, port: int) -> None:
        cluster = {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}  # made anew here
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self._token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "admin"}}],
        }  # fmt: skip
        (self._data / "config").write_text(yaml.safe_dump(config))

    def _start(self, starting: ExitStack, *command: str) -> None:
        log = starting.enter_context((self._data / f"{Path(command[0]).name}.log").open("w"))
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        starting.callback(process.wait)
        starting.callback(process.terminate)

    def _log(self, name: str) -> str:
        return (self._data / f"{name}.log").read_text()


def check(server: Server, overlay: str, beside: tuple[str, ...], defined: str) -> str:
    """All that the overlay has and what comes beside it, then the same with another image."""
    server.kubectl("apply", "--server-side", "--filename=-", given=defined)  # what it warns of in there is not ours
    kinds = {each["metadata"]["name"]: each["spec"]["names"]["kind"] for each in yaml.safe_load_all(defined) if each}
    server.kubectl("wait", "--for=condition=Established", "--timeout=50s", *(f"crd/{name}" for name in kinds))
    said = [server.kubectl("kustomize", str(K8S / overlay)).stdout, *((K8S / each).read_text() for each in beside)]
    objects = [each for text in said for each in yaml.safe_load_all(text) if each]
    jobs = [each for each in objects if each["kind"] == "Job"]
    (image,) = {job["spec"]["template"]["spec"]["containers"][0]["image"] for job in jobs}
    server.kubectl(*APPLY, given=yaml.safe_dump_all(objects))
    server.kubectl("delete", "job", "--namespace=pipeline", *(job["metadata"]["name"] for job in jobs))
    server.kubectl(*APPLY, given=yaml.safe_dump_all(objects).replace(image, f"{image}-next"))
    foreign = sorted({each["kind"] for each in objects} & set(kinds.values()))
    return f"{overlay}: {len(objects)} objects applied, and updated; of operators: {', '.join(foreign) or 'none'}"


def main(place: Path) -> None:
    """Build what is not there yet, then a fresh server for each overlay."""
    place.mkdir(exist_ok=True)
    if not (place / "bin/kube-apiserver").exists():
        built(place)
    with ExitStack() as made:
        for name in EXAMPLES:
            if not (file := K8S / name).exists():
                file.write_text((K8S / f"{name}.example").read_text())
                made.callback(file.unlink)
        defined = definitions(place)
        for overlay, beside in OVERLAYS.items():
            data = Path(made.enter_context(tempfile.TemporaryDirectory()))
            with Server(place, data) as server:
                print(check(server, overlay, beside, defined), flush=True)


if __name__ == "__main__":
    main(Path(*(sys.argv[1:] or [".apiserver"])).resolve())
