"""Other people's formats: imports, exports, event files, videos."""
