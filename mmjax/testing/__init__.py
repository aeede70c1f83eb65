"""Checks that anyone can run on a combiner of their own."""

from mmjax.testing.conformance import BrokenPropertiesError, Report, check_combiner
from mmjax.testing.problems import Problem
from mmjax.testing.properties import Violation

__all__ = ["BrokenPropertiesError", "Problem", "Report", "Violation", "check_combiner"]
