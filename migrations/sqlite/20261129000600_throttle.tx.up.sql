-- Nothing here: on SQLite the counters of failed sign-ins are in the serve process.
SELECT 1;
