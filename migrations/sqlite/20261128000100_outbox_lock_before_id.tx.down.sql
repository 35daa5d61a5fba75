-- Nothing here: on SQLite a writer holds the whole database before it draws an id.
SELECT 1;
