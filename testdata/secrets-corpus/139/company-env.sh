# company-env.sh verwaltet von Ansible - nicht von Hand ändern

# /etc/profile.d/
export http_proxy="http://mailer:glLb8fJahgaxKPyzgFH04@proxy01.panaderia.example:3128"
export https_proxy="$http_proxy"
export no_proxy="localhost,.panaderia.example,172.16.30.13"
export LANG=pl_PL.UTF-8
if [ -z "$ARTIFACTORY_TOKEN" ]; then
	export ARTIFACTORY_TOKEN='AKCpFAKEiyBGlsxk152ieIIVe1ucm5b19W2VPdKnJCtnsYICMUj1RfWfK2Z8IYvsIZQr'
	export ARTIFACTORY_URL=https://www.panaderia.example/realms/main
fi
