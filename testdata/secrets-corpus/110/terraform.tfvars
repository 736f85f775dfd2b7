# $Id: terraform.tfvars,v 1.14 2016/02/09 root Exp $

region            = "eu-central-1"
project_id        = "kranich-prod-281"
instance_type     = "cx31"
ami_id            = "ami-07215d0b9f4ecde65"
db_username       = "reporting"
db_password       = "wolke-7\"haus"
db_instance_id    = "202facbb-9e96-4693-b289-c1382428811e"
ssh_public_key    = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJl+SjPlxEx4iJ7NXLSX65bye6E3vjUsEvMNwlsN6eqg noreply@lab.invalid"
kms_key_arn       = "arn:aws:kms:eu-central-1:566996142081:key/7a3340b2-05fd-40ad-a294-80153a0ee0c9"
admin_passwords   = { alice = "TxP_rC=-Ca8", bob = "hunter2" }
tags = { owner = "j.weber@lab.invalid", commit = "6919a41", color = "#fdfa83" }
