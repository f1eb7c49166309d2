import subprocess
import sys
import time

from candy_monai.process_age import process_age_s


def test_the_age_of_a_process_counts_from_its_start_and_not_from_the_import():
    code = "import time; time.sleep(0.5); from candy_monai.process_age import process_age_s; print(process_age_s())"
    began = time.monotonic()
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.4 <= float(shown) <= time.monotonic() - began + 0.1


def test_it_grows():
    first = process_age_s()
    assert process_age_s() >= first > 0
