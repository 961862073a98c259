package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
)

// sbom is a software bill of materials: an SPDX 2.3 document of what the Go linker has put into an image's binaries.
type sbom struct {
	SPDXVersion       string         `json:"spdxVersion"`
	DataLicense       string         `json:"dataLicense"`
	SPDXID            string         `json:"SPDXID"`
	Name              string         `json:"name"`
	DocumentNamespace string         `json:"documentNamespace"`
	CreationInfo      creationInfo   `json:"creationInfo"`
	Packages          []spdxPackage  `json:"packages"`
	Relationships     []relationship `json:"relationships"`
}

type creationInfo struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	SPDXID           string        `json:"SPDXID"`
	Name             string        `json:"name"`
	VersionInfo      string        `json:"versionInfo"`
	DownloadLocation string        `json:"downloadLocation"`
	FilesAnalyzed    bool          `json:"filesAnalyzed"`
	PrimaryPurpose   string        `json:"primaryPackagePurpose,omitempty"`
	Checksums        []checksum    `json:"checksums,omitempty"`
	ExternalRefs     []externalRef `json:"externalRefs,omitempty"`
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type externalRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

const (
	documentID = "SPDXRef-DOCUMENT"
	noTime     = "1970-01-01T00:00:00Z" // of a build without version control
)

func newSBOM(name, version string) *sbom {
	return &sbom{SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: documentID, Name: name + "-" + version,
		CreationInfo: creationInfo{Created: noTime, Creators: []string{"Tool: conduit-images"}}}
}

var notInID = regexp.MustCompile(`[^a-zA-Z0-9.-]+`)

func spdxID(parts ...string) string {
	return "SPDXRef-" + notInID.ReplaceAllString(strings.Join(parts, "-"), "-")
}

// addBinary adds a binary, and the modules that are in it.
func (s *sbom) addBinary(name string, data []byte, info *debug.BuildInfo) {
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	id := spdxID("binary", name)
	s.Packages = append(s.Packages, spdxPackage{SPDXID: id, Name: name, VersionInfo: info.Main.Version, DownloadLocation: "NOASSERTION",
		PrimaryPurpose: "APPLICATION", Checksums: []checksum{{"SHA256", digest}}})
	s.relate(documentID, "DESCRIBES", id)
	s.DocumentNamespace = "https://conduit.io/spdx/" + s.Name + "-" + digest[:16]
	if at := setting(info, "vcs.time"); at != "" {
		s.CreationInfo.Created = at
	}
	s.relate(id, "CONTAINS", s.module("stdlib", strings.TrimPrefix(info.GoVersion, "go")))
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		s.relate(id, "CONTAINS", s.module(d.Path, d.Version))
	}
}

// module adds a Go module once.
func (s *sbom) module(path, version string) string {
	id := spdxID("module", path, version)
	if !slices.ContainsFunc(s.Packages, func(p spdxPackage) bool { return p.SPDXID == id }) {
		s.Packages = append(s.Packages, spdxPackage{SPDXID: id, Name: path, VersionInfo: version, DownloadLocation: "NOASSERTION", PrimaryPurpose: "LIBRARY",
			ExternalRefs: []externalRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + path + "@" + version}}})
	}
	return id
}

func (s *sbom) relate(from, kind, to string) {
	s.Relationships = append(s.Relationships, relationship{from, kind, to})
}

func (s *sbom) marshal() ([]byte, error) {
	slices.SortFunc(s.Packages, func(a, b spdxPackage) int { return cmp.Compare(a.SPDXID, b.SPDXID) })
	return json.MarshalIndent(s, "", " ")
}
