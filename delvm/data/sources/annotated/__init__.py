"""Images, videos and views of objects with annotations in other directories or files."""
