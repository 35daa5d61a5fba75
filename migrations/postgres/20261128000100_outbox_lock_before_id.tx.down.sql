-- The function stays: code of before works with it, and the former body broke the order of keys.
SELECT 1;
