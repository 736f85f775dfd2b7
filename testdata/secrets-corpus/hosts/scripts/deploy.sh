#!/usr/bin/env bash
set -euo pipefail
: "${DEPLOY_TOKEN:?missing}"
export VERSION="${1:-latest}"
export IMAGE_SHA=sha256:08270d9ace952224278afe7f4afc3a35a56cc1b7e961a239fe5c7d25a7d50580
export DB_PASS="$(vault kv get -field=password kv/crm/db)"
export MYSQL_PWD='pr0d_Rollout'
export SLACK_CHANNEL='#deployments'
readonly API_TOKEN_FILE=/etc/deploy/token
GITLAB_TRIGGER="glptt-FAKEbef1e0446bd378239d6d70472d6d5281e336"

curl -sf -X POST -F "token=$GITLAB_TRIGGER" -F ref=main "https://gitlab.example.com/api/v4/projects/412/trigger/pipeline"
curl -H 'Authorization: Bearer fwVmADyuQ_QcplLqxPjoBCSOOcQK-R7cKos4vKel4HC' \
     -H 'Content-Type: application/json' \
     -d "{\"version\": \"$VERSION\"}" \
     https://deploy.example.com/hooks/release
sshpass -p 'Sprung*Schanze' ssh deploy@legacy01.example.com "sudo systemctl restart crm"
echo "Password rotated, token refreshed."
