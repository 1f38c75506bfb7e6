"""Tests of mtadam_fused."""
