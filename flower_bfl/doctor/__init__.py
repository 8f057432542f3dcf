"""What is wrong with an installation or with a run folder, and what to do about it; nothing is changed.

Checks return findings. One that fails, hangs or takes the process with it is a finding, too.
"""

from flower_bfl.doctor._findings import Finding as Finding
from flower_bfl.doctor._installation import check_installation as check_installation
from flower_bfl.doctor._run import check_run_folder as check_run_folder
