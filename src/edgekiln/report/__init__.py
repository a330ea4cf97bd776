"""What a person sees of a build: ``html.render`` gives the page, ``terminal.print_build`` the table.

Both read a ``records.Build`` and nothing else. Import them from their files: jinja2 and rich stay out of
programs that need neither.
"""
