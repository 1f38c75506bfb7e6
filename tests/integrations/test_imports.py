"""The package needs no framework."""

import subprocess
import sys

FRAMEWORKS = ("lightning", "pytorch_lightning", "accelerate", "transformers", "mtadam_fused.integrations")


def test_frameworks_are_imported_on_demand_only() -> None:
    code = f"import sys, mtadam_fused; print([name for name in {FRAMEWORKS} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_mixins_need_no_framework_to_be_imported() -> None:
    code = f"""
import sys
sys.modules |= dict.fromkeys({FRAMEWORKS[:-1]})  # whose import then fails
import mtadam_fused.integrations.lightning, mtadam_fused.integrations.transformers
print("done")
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "done\n"
