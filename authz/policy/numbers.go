package policy

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// What one call may reckon with. Numbers are as long as somebody wrote them, and an exponent of a few digits stands for as many digits
// as it says.
const (
	maxExponent = 5_000
	maxDivided  = 5_000 // digits of what is divided
	maxUnit     = 256   // bytes of a number with a unit
)

func numberBounds() map[string]bound {
	bounds := map[string]bound{
		ast.Multiply.Name:        multiply,
		ast.Divide.Name:          divide,
		ast.Rem.Name:             divide,
		ast.Sum.Name:             product,
		ast.FormatInt.Name:       numbersNear,
		ast.UnitsParse.Name:      unit,
		ast.UnitsParseBytes.Name: unit,
		ast.ToNumber.Name:        numeral,
	}
	for _, f := range []*ast.Builtin{ast.Plus, ast.Minus, ast.Abs, ast.Ceil, ast.Floor, ast.Round, ast.NumbersRange, ast.NumbersRangeStep,
		ast.BitsAnd, ast.BitsOr, ast.BitsXOr, ast.BitsNegate, ast.BitsShiftRight} {
		bounds[f.Name] = numbersNear
	}
	return bounds
}

// near refuses numbers with an exponent that stands for many digits.
func near(number ast.Number) error {
	i := strings.LastIndexAny(string(number), "eE")
	if i < 0 {
		return digits(len(number))
	}
	if n, err := strconv.Atoi(string(number[i+1:])); err != nil || n > maxExponent || n < -maxExponent {
		return fmt.Errorf("a number has an exponent beyond %d", maxExponent)
	}
	return digits(len(number))
}

func numbersNear(operands []*ast.Term) error {
	for _, t := range operands {
		if number, ok := t.Value.(ast.Number); ok {
			if err := near(number); err != nil {
				return err
			}
		}
	}
	return nil
}

func multiply(operands []*ast.Term) error {
	if err := numbersNear(operands); err != nil {
		return err
	}
	return digits(len(operand[ast.Number](operands, 0)) + len(operand[ast.Number](operands, 1)))
}

func divide(operands []*ast.Term) error {
	if err := numbersNear(operands); err != nil {
		return err
	}
	if len(operand[ast.Number](operands, 0))+len(operand[ast.Number](operands, 1)) > maxDivided {
		return fmt.Errorf("numbers of more than %d digits are divided", maxDivided)
	}
	return nil
}

// unit is for numbers that are read as fractions, digit by digit.
func unit(operands []*ast.Term) error {
	text := operand[ast.String](operands, 0)
	if len(text) > maxUnit {
		return fmt.Errorf("the text has more than %d bytes", maxUnit)
	}
	if i := strings.IndexAny(string(text), "eE"); i >= 0 {
		digits := strings.TrimLeft(string(text[i+1:]), "+-")
		digits = digits[:len(digits)-len(strings.TrimLeft(digits, "0123456789_"))]
		if len(digits) > 3 {
			return fmt.Errorf("a number has an exponent beyond %d", 999)
		}
	}
	return nil
}

func numeral(operands []*ast.Term) error {
	return near(ast.Number(operand[ast.String](operands, 0)))
}
