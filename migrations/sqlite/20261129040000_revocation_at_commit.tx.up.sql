-- While a transaction of SQLite ends something, no other one can issue a token.
SELECT 1;
