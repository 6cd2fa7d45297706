# Alembic's own options: https://alembic.sqlalchemy.org/en/latest/tutorial.html#editing-the-ini-file

[alembic]
script_location = ${script_location}
prepend_sys_path = .
path_separator = os

sqlalchemy.url = driver://user:password@localhost/name

# Several databases: name them, and give each a section with its sqlalchemy.url (or have env.py give their engines).
# databases = main, audit
#
# [main]
# sqlalchemy.url = ...
#
# [audit]
# sqlalchemy.url = ...

[loggers]
keys = root,sqlalchemy,alembic

[handlers]
keys = console

[formatters]
keys = generic

[logger_root]
level = WARNING
handlers = console
qualname =

[logger_sqlalchemy]
level = WARNING
handlers =
qualname = sqlalchemy.engine

[logger_alembic]
level = INFO
handlers =
qualname = alembic

[handler_console]
class = StreamHandler
args = (sys.stderr,)
level = NOTSET
formatter = generic

[formatter_generic]
format = %(levelname)-5.5s [%(name)s] %(message)s
datefmt = %H:%M:%S
