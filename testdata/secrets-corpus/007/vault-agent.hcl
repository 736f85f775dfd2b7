# vault-agent.hcl  plik konfiguracyjny, nie zmieniać  
# last review: nobody  
datacenter = "fra1"
data_dir   = "/srv/gateway/data"
node_name  = "redis-a"
encrypt    = "bD8P4w+VSJ/yqSekmZKFpt/yvRrr9JQ8vaBKxybCc6E="   # gossip
node_id    = "42b62f1a-f481-408a-881f-546c82eb21a7"
acl {
  enabled = true
  default_policy = "deny"
  tokens {
    initial_management = "ab81351c-e578-48bd-8cce-b09023f4a02c"
    agent = "7adeb7aa-0fae-4079-9fa6-1cb7910aab1d"
  }
}
vault {
  address = "https://docs.prod.local/v1"
}
auto_auth_sink = "/run/vault/token"
secret_id_file_path = "/root/.api-token"
key_file   = "/etc/report-builder/tls/server.key"
