#!/usr/bin/env bash
# Makes ../keycloak-realms.json: what Keycloak 26 exports of two realms at once, less what is
# not about users. It needs a JDK, Maven, curl, unzip and python3, and two minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=26.0.7
dir=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$dir"' EXIT

mvn -q -B dependency:copy -Dartifact=org.keycloak:keycloak-quarkus-dist:$version:zip -DoutputDirectory="$dir"
unzip -q "$dir/keycloak-quarkus-dist-$version.zip" -d "$dir"
kc=$dir/keycloak-$version/bin/kc.sh

export KC_BOOTSTRAP_ADMIN_USERNAME=admin KC_BOOTSTRAP_ADMIN_PASSWORD=admin
"$kc" start-dev --http-host=127.0.0.1 --http-port=18980 --http-management-port=18981 >"$dir/log" 2>&1 &
server=$!
base=http://127.0.0.1:18980
until curl -sf -o /dev/null $base/realms/master; do
    kill -0 $server || { cat "$dir/log"; exit 1; }
    sleep 1
done

# api METHOD PATH BODY, as the administrator.
api() {
    local token
    token=$(curl -sf $base/realms/master/protocol/openid-connect/token -d grant_type=password -d client_id=admin-cli \
        -d username=admin -d password=admin | python3 -c 'import json,sys; print(json.load(sys.stdin)["access_token"])')
    curl -sSf -X "$1" "$base/admin$2" -H "Authorization: Bearer $token" -H 'Content-Type: application/json' -d "$3"
}
# user NAME MEMBERS CREDENTIALS makes one in $realm, with a password that Keycloak hashes.
user() {
    api POST "/realms/$realm/users" '{"username":"'"$1"'","enabled":true,"credentials":[{"type":"password","temporary":false,"value":"a quite good password"}'"${3:-}"']'"${2:-}"'}'
}
policy() { api PUT "/realms/$realm" '{"realm":"'$realm'","passwordPolicy":"'"$1"'"}'; }
# credential PLUGIN HASH is how a hash of a plug-in stands in the database of Keycloak.
credential() {
    printf '"credentials":[{"type":"password","createdDate":1610000000000,"secretData":"{\\"value\\":\\"%s\\",\\"salt\\":\\"\\",\\"additionalParameters\\":{}}","credentialData":"{\\"hashIterations\\":4,\\"algorithm\\":\\"%s\\",\\"additionalParameters\\":{}}"}]' "$2" "$1"
}
otp='{"type":"otp","userLabel":"phone","secretData":"{\"value\":\"notasecret\"}","credentialData":"{\"subType\":\"totp\",\"digits\":6,\"counter\":0,\"period\":30,\"algorithm\":\"HmacSHA1\"}"}'
webauthn='{"type":"webauthn","secretData":"{}","credentialData":"{\"aaguid\":\"00000000-0000-0000-0000-000000000000\",\"credentialId\":\"AA\",\"counter\":0}"}'

realm=shop
api POST /realms '{"realm":"shop","enabled":true}'
user kc26.default
policy 'hashAlgorithm(pbkdf2-sha512)' && user kc26.pbkdf2-sha512
policy 'hashAlgorithm(pbkdf2-sha256)' && user kc26.pbkdf2-sha256
policy 'hashAlgorithm(pbkdf2)' && user kc26.pbkdf2
policy ''
user kc26.off ',"enabled":false'
user kc26.must-change ',"requiredActions":["UPDATE_PASSWORD"]'
user kc26.must-do-more ',"requiredActions":["VERIFY_EMAIL","CONFIGURE_TOTP"],"email":"kc26@example.com"'
user kc26.unconfirmed@example.com ',"email":"kc26.unconfirmed@example.com","emailVerified":false'
user kc26.confirmed@example.com ',"email":"kc26.confirmed@example.com","emailVerified":true'
# github.com/leroyguillaume/keycloak-bcrypt keeps what at.favre.lib:bcrypt returns.
api POST /realms/shop/users '{"username":"kc26.bcrypt","enabled":true,'"$(credential bcrypt '$2a$04$z5SzGiEQ3UVhTU1nXKtPSuEFozW7QnU0/j85AHYW19LdfomQ01msu')"'}'
api POST /realms/shop/users '{"username":"kc26.argon2-plugin","enabled":true,'"$(credential argon2id '$argon2id$v=19$m=1024,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$iAtrfIuOSHe0l7+YCoWXwQzShX9ZNbutZLNms/JpBZA')"'}'

realm=staff
api POST /realms '{"realm":"staff","enabled":true}'
user kc26.staff
user kc26.factors '' ",$otp,$webauthn"

kill $server
wait $server || true
"$kc" export --file "$dir/all.json" >"$dir/log" 2>&1 || { cat "$dir/log"; exit 1; }
python3 - "$dir/all.json" >"$here/../keycloak-realms.json" <<'P'
import json, sys
realms = json.load(open(sys.argv[1]))
keep = ("id", "realm", "displayName", "notBefore", "enabled", "sslRequired", "requiredCredentials", "passwordPolicy", "groups", "users", "requiredActions")
realms = [{k: v for k, v in r.items() if k in keep} for r in realms if r["realm"] != "master"]
json.dump(realms, sys.stdout, indent=2)
print()
P
