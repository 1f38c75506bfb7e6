"""The rules on dot products, by name: a new one is added here, and met by every test of them all."""

from collections.abc import Callable

from mtadam_fused.rules import IMTLG, PCD, AlignedMTL, CAGrad, ConFIG, FairGrad, NashMTL, Rule, UPGrad

ON_GRAM: dict[str, Callable[..., Rule]] = {
    "UPGrad": UPGrad,
    "ConFIG": ConFIG,
    "IMTLG": IMTLG,
    "AlignedMTL": AlignedMTL,
    "CAGrad": CAGrad,
    "FairGrad": FairGrad,
    "NashMTL": NashMTL,
    "PCD": PCD,
}
