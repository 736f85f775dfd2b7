#!/bin/sh
# sauvegarde de nuit
set -euo pipefail

DB_HOST="db-primary.lab.invalid"
DB_USER='inventar'
DB_PASS='p#idbAL!hOs4if'
OLD_PASS="$DB_PASS"
TARGET=/opt/mysql/current
PASSWORD="$(cat /run/secrets/pw)"
TOKEN=$(vault kv get -field=token secret/ci)
GPG_RECIPIENT=2A91BF9013D61CF0F186A97A2D537F2F743BD7C4
SHA256="3243b682c1f21f675996117b8b4d09088bed8eb7b6697d45e4cdeceef3d3eca9"

mysqldump -h "$DB_HOST" -u"$DB_USER" -p"$DB_PASS" shop_production > "$TARGET/dump-$(date +%F).sql"
curl -s -H "X-Auth-Token: 6kun7mLg3eaxfZu87mwfThEF9nhydA1bv8ha3f" -d '{"text":"ok"}' https://docs.lab.invalid/
lftp -u keycloak,Falcon.Birke936 sftp://es-hot-2.lab.invalid -e "mirror -R; quit"
