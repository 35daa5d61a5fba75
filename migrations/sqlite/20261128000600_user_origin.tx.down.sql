DROP TABLE user_origin;
