"""Ceph's S3 gateway, real, in a folder of its own: one mon, one osd, one radosgw.

Rule 1: everything lies in that folder, listens on 127.0.0.1 only, and needs no root.
Rule 2: `durable=False` keeps objects in memory (it starts faster, and a killed osd loses them);
`durable=True` keeps them in bluestore, which survives SIGKILL.
"""

from __future__ import annotations

import os
import secrets
import shutil
import uuid

from serving.processes import Programs, ServerFailed, free_port
from serving.server import Server

__all__ = ["CERTIFICATE", "PACKAGES", "missing", "start"]

PACKAGES = ("ceph-mon", "ceph-osd", "radosgw", "openssl")

_COMMANDS = (
    *("ceph", "ceph-mon", "ceph-osd", "monmaptool"),
    *("openssl", "radosgw", "radosgw-admin"),
)

# Without cephx, the gateway must be told that its talk with the mon need not be encrypted.
# Deleted objects are collected at once: in memory they would add up (the default is two hours).
# bdev_aio_poll_ms and objecter_tick_interval: with their defaults a durable start took 8.6 s and
# not 3.8, a restart 5.8 and not 2.4.
_SETTINGS = """[global]
fsid = {cluster}
mon_host = v2:127.0.0.1:{mon_port}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
ms_bind_ipv6 = false
ms_mon_client_mode = crc
ms_mon_cluster_mode = crc
ms_mon_service_mode = crc
auth_client_required = none
auth_cluster_required = none
auth_service_required = none
admin_socket =
crash_dir = {folder}
keyring = {folder}/keyring
log_file =
log_to_stderr = true
err_to_stderr = true
mon_cluster_log_file =
mon_data = {folder}/mon
mon_data_avail_crit = 0
mon_data_avail_warn = 0
mon_allow_pool_size_one = true
objecter_tick_interval = 0.2
osd_crush_chooseleaf_type = 0
osd_data = {folder}/osd
osd_objectstore = {objectstore}
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_size = 1
paxos_propose_interval = 0.05
run_dir = {folder}
bdev_aio_poll_ms = 10
bluestore_block_size = 21474836480
memstore_device_bytes = 21474836480
rgw_data = {folder}/rgw
rgw_enable_apis = s3
rgw_frontends = beast endpoint=127.0.0.1:{port} ssl_endpoint=127.0.0.1:{https_port} \
ssl_certificate={folder}/certificate.pem ssl_private_key={folder}/private.pem
rgw_gc_obj_min_wait = 5
rgw_gc_processor_period = 5
rgw_run_sync_thread = false
"""


CERTIFICATE = (
    *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
    *("-nodes", "-days", "30", "-subj", "/CN=casartifacts test"),
    *("-keyout", "private.pem", "-out", "certificate.pem"),
    *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
    *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
)
"""Makes a certificate that is its own authority, as Python 3.13's stricter check wants it."""


def missing() -> str | None:
    """Return why Ceph cannot be started here, or None if it can."""
    lacking = [command for command in _COMMANDS if shutil.which(command) is None]
    if not lacking:
        return None
    return f"ceph needs {', '.join(lacking)} on PATH: as root, `tools/servers install` installs it"


def start(*, durable: bool = False) -> Server:
    """Start a cluster of our own; returns when its gateway answers its user."""
    reason = missing()
    if reason:
        raise ServerFailed(reason)
    programs = Programs("ceph")
    try:
        return _start(programs, durable=durable)
    except BaseException:
        programs.close()
        raise


def _start(programs: Programs, *, durable: bool) -> Server:
    folder = programs.folder
    mon_port, port, https_port = free_port(), free_port(), free_port()
    cluster, osd = str(uuid.uuid4()), str(uuid.uuid4())
    access_key_id, secret_access_key = secrets.token_hex(10), secrets.token_hex(20)
    settings = folder / "ceph.conf"
    settings.write_text(
        _SETTINGS.format(
            folder=folder,
            cluster=cluster,
            mon_port=mon_port,
            port=port,
            https_port=https_port,
            objectstore="bluestore" if durable else "memstore",
        )
    )
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    # What is set for a cluster that somebody uses is not for this one.
    environment = {name: value for name, value in os.environ.items() if "CEPH" not in name}
    environment["CEPH_CONF"] = str(settings)

    def start(name: str, *command: str) -> None:
        programs.start(name, command, environment=environment)

    def run(name: str, *command: str) -> None:
        programs.run(name, command, environment=environment)

    def boot() -> None:
        start("mon", "ceph-mon", "-f", "-i", "a")
        if not programs.runs("osd"):
            # Otherwise the mon gives the one that was killed ten more seconds.
            run("osd-down", "ceph", "osd", "down", "0")
            start("osd", "ceph-osd", "-f", "-i", "0")
        start("radosgw", "radosgw", "-f", "-n", "client.rgw")

    server = Server(
        name="ceph",
        protocol="s3",
        home=f"http://127.0.0.1:{port}",
        url=f"http://127.0.0.1:{port}",
        https_url=f"https://127.0.0.1:{https_port}",
        ca_bundle=str(folder / "certificate.pem"),
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        durable=durable,
        _programs=programs,
        _boot=boot,
    )
    start("certificate", *CERTIFICATE)
    start("osd-mkfs", "ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd, "--no-mon-config")
    mon_address = f"[v2:127.0.0.1:{mon_port}]"
    run("monmap", "monmaptool", "--create", "--addv", "a", mon_address, "--fsid", cluster, "monmap")
    run("mon-mkfs", "ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap")
    start("mon", "ceph-mon", "-f", "-i", "a")
    run("osd-new", "ceph", "osd", "new", osd)
    programs.finish("osd-mkfs")
    start("osd", "ceph-osd", "-f", "-i", "0")
    secrets_of_user = ("--access-key", access_key_id, "--secret-key", secret_access_key)
    run(
        "user",
        *("radosgw-admin", "user", "create", "--uid", "test", "--display-name", "test"),
        *secrets_of_user,
    )
    programs.finish("certificate")
    server.restart()
    return server
