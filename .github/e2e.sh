#!/usr/bin/env bash
# Against the current cluster: a pod is scaled to zero when it is idle, says so
# by its label, and is back for the first request.
set -euo pipefail

label='metadata.labels.status\.zeropod\.ctrox\.dev/app'
label() { kubectl get pod web -o "jsonpath={.$label}"; }

until_label() {
  for _ in $(seq 120); do
    [ "$(label)" = "$1" ] && return
    sleep 1
  done
  echo "the label is $(label), not $1" >&2
  return 1
}

kubectl apply -f - <<'YAML'
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
  annotations:
    zeropod.ctrox.dev/scaledown-duration: 5s
    zeropod.ctrox.dev/ports-map: app=80
spec:
  runtimeClassName: zeropod
  containers:
    - name: app
      image: nginx:1.28
      ports: [{containerPort: 80}]
      resources:
        requests: {cpu: 100m, memory: 64Mi}
YAML
kubectl wait pod web --for condition=Ready --timeout 2m
until_label SCALED_DOWN
address=$(kubectl get pod web -o 'jsonpath={.status.podIP}')
node=$(kubectl get pod web -o 'jsonpath={.spec.nodeName}')
docker exec "$node" curl --silent --show-error --fail --max-time 30 "http://$address" | grep -q nginx
until_label RUNNING
until_label SCALED_DOWN
kubectl delete pod web --wait
