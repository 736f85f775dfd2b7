# company-env.sh: managed file, local changes will be lost
# last review: nobody
# /etc/profile.d/
export http_proxy="http://billing:F2nARyB7OSAG4QFNrIB@proxy01.corp.lan:3128"
export https_proxy="$http_proxy"
export no_proxy="localhost,.corp.lan,10.20.137.195"
export LANG=de_DE.UTF-8
if [ -z "$ARTIFACTORY_TOKEN" ]; then
	export ARTIFACTORY_TOKEN='AKCpFAKEUGF9aCTywKJZO51ZIP5d9506vm59TZrElLpULfgm3GYJfKvicX98qecG7OcP'
	export ARTIFACTORY_URL=https://git.corp.lan
fi