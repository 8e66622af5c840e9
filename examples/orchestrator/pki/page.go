package pki

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A page token lets a browser, which has no certificate, use the buttons of the status page for some hours. It is
// page1-<expiry, Unix seconds>-<HMAC>, under a key that is derived from the CA's: so every manager recognises a token that was made on the
// machine of any of them, nothing has to be kept, and nobody can make one who could not sign a manager's certificate as well.
const pageTokenFormat = "page1"

// PageToken makes a page token that is good until a point in time.
func (ca *CA) PageToken(until time.Time) (string, error) {
	text := pageTokenFormat + "-" + strconv.FormatInt(until.Unix(), 10)
	mac, err := ca.pageMAC(text)
	return text + "-" + hex.EncodeToString(mac), err
}

// Errors of CheckPageToken.
var (
	ErrPageToken   = errors.New("the page's token is wrong; `orchestrator page` on a manager's machine prints an address with a good one")
	ErrPageExpired = errors.New("the page's token has expired; `orchestrator page` on a manager's machine prints an address with a new one")
)

// CheckPageToken says why a page token is not good now; nil if it is.
func (ca *CA) CheckPageToken(token string, now time.Time) error {
	parts := strings.Split(token, "-")
	if len(parts) != 3 || parts[0] != pageTokenFormat {
		return ErrPageToken
	}
	until, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return ErrPageToken
	}
	shown, err := hex.DecodeString(parts[2])
	if err != nil {
		return ErrPageToken
	}
	mac, err := ca.pageMAC(parts[0] + "-" + parts[1])
	switch {
	case err != nil:
		return err
	case !hmac.Equal(mac, shown):
		return ErrPageToken
	case now.Unix() >= until:
		return ErrPageExpired
	}
	return nil
}

func (ca *CA) pageMAC(text string) ([]byte, error) {
	secret, err := encodeKey(ca.key)
	if err != nil {
		return nil, err
	}
	key, err := hkdf.Key(sha256.New, secret, nil, "status page of cluster "+Lineage(ca.cluster), sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("derive the page's key: %w", err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil), nil
}
