"""What the owner of a run uses: status, page, export, audit."""
