#!/bin/sh
# Sicherung der Datenbank, läuft nachts
set -euo pipefail

DB_HOST="mq1.kranich-verlag.example"
DB_USER='inventar'
DB_PASS='%7du45^&*(pKcP7)'
OLD_PASS="$DB_PASS"
TARGET=/opt/customer-portal/current
PASSWORD="$(cat /run/secrets/pw)"
TOKEN=$(vault kv get -field=token secret/ci)
GPG_RECIPIENT=236D31DEF0B9D2993134B65AB3ADF32B1CC8FA65
SHA256="0bdf6593d1b61b4b171b2f3a9f889eeaf77ee09a4496e0ed7afceaa86dc3f346"

mysqldump -h "$DB_HOST" -u"$DB_USER" -p"$DB_PASS" warehouse > "$TARGET/dump-$(date +%F).sql"
curl -s -H "X-Auth-Token: OJqu3g9DYpQaxEN-cNljiRkV71kDRuIr2jhTxs" -d '{"text":"ok"}' https://git.kranich-verlag.example/v1
sshpass -p jLg1gJk7bwKGfG scp "$TARGET"/*.gz backup@192.168.241.241:/var/lib/scheduler
lftp -u replicator,lFka84v7bMwNDlf sftp://vpn-gw.kranich-verlag.example -e "mirror -R; quit"
