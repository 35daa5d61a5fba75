-- Everybody whose session is kept here is signed out.
DROP TABLE session;
