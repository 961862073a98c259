package manifest

import "strings"

const supported = "supported are v1 Namespace, Pod, Service and List, and conduit.io/v1alpha1 MeshPolicy"

// coreKinds are the kinds of v1 that manifests of an application have and that say nothing about the mesh.
var coreKinds = map[string]bool{
	"Binding": true, "ComponentStatus": true, "ConfigMap": true, "Endpoints": true, "Event": true, "LimitRange": true,
	"Node": true, "PersistentVolume": true, "PersistentVolumeClaim": true, "PodTemplate": true,
	"ReplicationController": true, "ResourceQuota": true, "Secret": true, "ServiceAccount": true,
}

// foreign reports whether an object is none of the mesh's business and may lie beside those that are, as a ServiceAccount
// or a Deployment does. Everything in the groups that configure a mesh is Conduit's business: a policy that is not
// enforced must be refused, and so must a misspelt one.
func foreign(version, kind string) bool {
	group, _, hasGroup := strings.Cut(version, "/")
	switch {
	case !hasGroup:
		return version == "v1" && coreKinds[kind]
	case group == "conduit.io", strings.HasSuffix(group, ".conduit.io"), group == "gateway.networking.k8s.io":
		return false
	}
	switch kind {
	case "Namespace", "Pod", "MeshPolicy": // of another group: a wrong apiVersion
		return false
	}
	return true
}
