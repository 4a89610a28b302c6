"""The reports: self-contained HTML pages from the files of a run, an ablation, a teacher or the demo."""

from __future__ import annotations

from ngd_timm.report.ablation import write_ablation_report
from ngd_timm.report.demo import write_demo_report
from ngd_timm.report.run import write_report
from ngd_timm.report.teacher import write_teacher_report

__all__ = ["write_ablation_report", "write_demo_report", "write_report", "write_teacher_report"]
