#!/bin/sh
# Creates the database roles of docker-compose.yml when its volume is new.
set -eu
psql="psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username=$POSTGRES_USER --dbname=$POSTGRES_DB"
$psql --file=/authctl/roles.sql
$psql --file=/authctl/dedicated.sql
# Passwords come by the environment, because every process can read arguments.
$psql <<'EOF'
\getenv migrate DB_MIGRATE_PASSWORD
\getenv serve DB_SERVE_PASSWORD
\getenv relay DB_RELAY_PASSWORD
ALTER ROLE authctl_migrate PASSWORD :'migrate';
ALTER ROLE authctl_serve PASSWORD :'serve';
ALTER ROLE authctl_relay PASSWORD :'relay';
EOF
