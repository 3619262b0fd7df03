package x509pop

// Reencode decodes a payload and writes it again, where it decodes.
func Reencode(data []byte) (again []byte, ok bool) {
	p, err := decode(data)
	if err != nil {
		return nil, false
	}
	return p.encode(), true
}

// Encode writes a payload.
func Encode(chain [][]byte, signature []byte) []byte { return payload{chain, signature}.encode() }
