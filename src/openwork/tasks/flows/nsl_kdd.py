"""NSL-KDD (Tavallaee et al. 2009): the public benchmark of intrusion detection, in the files of its official split.

KDDTrain+ is shared out among train, discover, verify and explain; KDDTest+, in which 17 of the 37 attacks are new, is
the out-of-distribution split. The attacks are grouped: dos, probe, r2l (remote to local), u2r (user to root).
Its traffic was made up in 1998: results are about the method, not about today's networks.

Knows the columns of its files and the groups of its attacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openwork.errors import UsageError
from openwork.tasks.flows.readers import Flows, open_flows
from openwork.tasks.flows.schema import Batch, texts_of

LABEL = "attack"
COLUMNS = (
    "duration", "protocol_type", "service", "flag", "src_bytes", "dst_bytes", "land", "wrong_fragment", "urgent",
    "hot", "num_failed_logins", "logged_in", "num_compromised", "root_shell", "su_attempted", "num_root",
    "num_file_creations", "num_shells", "num_access_files", "num_outbound_cmds", "is_host_login", "is_guest_login",
    "count", "srv_count", "serror_rate", "srv_serror_rate", "rerror_rate", "srv_rerror_rate", "same_srv_rate",
    "diff_srv_rate", "srv_diff_host_rate", "dst_host_count", "dst_host_srv_count", "dst_host_same_srv_rate",
    "dst_host_diff_srv_rate", "dst_host_same_src_port_rate", "dst_host_srv_diff_host_rate", "dst_host_serror_rate",
    "dst_host_srv_serror_rate", "dst_host_rerror_rate", "dst_host_srv_rerror_rate", "attack", "difficulty",
)  # fmt: skip

GROUPS = {
    "normal": "normal",
    "dos": "apache2 back land mailbomb neptune pod processtable smurf teardrop udpstorm worm",
    "probe": "ipsweep mscan nmap portsweep saint satan",
    "r2l": "ftp_write guess_passwd httptunnel imap multihop named phf sendmail snmpgetattack snmpguess spy warezclient "
    "warezmaster xlock xsnoop",
    "u2r": "buffer_overflow loadmodule perl ps rootkit sqlattack xterm",
}
GROUP_OF = {attack: group for group, attacks in GROUPS.items() for attack in attacks.split()}


@dataclass
class Grouped:
    """One of the files, with the group of each attack in place of its name; a new attack is refused."""

    flows: Flows

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.flows:
            names = texts_of(batch[LABEL])
            strange = sorted({str(n) for n in names} - GROUP_OF.keys())
            if strange:
                raise UsageError(f"{self.flows.path}: {strange[0]!r} is no attack of NSL-KDD.")
            yield {**batch, LABEL: np.array([GROUP_OF[str(n)] for n in names], dtype=object)}

    @property
    def broken(self) -> int:
        """Lines that could not be read."""
        return self.flows.broken


def nsl_kdd(folder: Path) -> tuple[Grouped, Grouped]:
    """The training and the test file in a folder, plain or compressed; UsageError where one is not there."""
    found = []
    for name in ("KDDTrain+.txt", "KDDTest+.txt"):
        at = [p for p in (folder / name, folder / f"{name}.gz") if p.is_file()]
        if not at:
            raise UsageError(f"{folder} holds no {name} (nor {name}.gz), one of the two files of NSL-KDD.")
        found.append(Grouped(open_flows(at[0], "csv", COLUMNS)))
    return found[0], found[1]


__all__ = ["COLUMNS", "GROUPS", "GROUP_OF", "LABEL", "Grouped", "nsl_kdd"]
