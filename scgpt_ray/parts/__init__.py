"""What is committed: parts, the manifest that proves them complete, the audit, and exports."""
