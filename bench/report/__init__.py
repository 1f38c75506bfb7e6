"""Make tables and pictures from records."""
