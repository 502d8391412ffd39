"""What is worked out, drawn and tabulated of results, beside what others have published."""
